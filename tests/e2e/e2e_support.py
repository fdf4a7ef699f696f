"""Runs the command line in processes of its own, which have its imports already, and looks at what it leaves."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from warm_start import WarmProcess, start_warm

from m4v.core.errors import ExitClass
from pipelines.ledger import AttemptRow, Ledger, Status

PIPELINE_TIMEOUT_S = 1200
ENTRY = "pipelines.cli.main:main"
FoundT = TypeVar("FoundT")
Nodes = dict[str, dict[str, Any]]


def m4v(
    home: Path, *arguments: str, code: int = ExitClass.OK, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a verb on `home` to its end; fails the test when it ends with another code."""
    with tempfile.TemporaryDirectory() as folder:
        said, complained = Path(folder) / "stdout", Path(folder) / "stderr"
        process = start(home, *arguments, output=said, errors=complained, environment=environment)
        try:
            ended = process.wait(PIPELINE_TIMEOUT_S)
        finally:
            process.kill()
        done = subprocess.CompletedProcess(arguments, ended, said.read_text(), complained.read_text())
    if done.returncode != code:
        said_last = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        pytest.fail(f"m4v {' '.join(arguments)} ended with {done.returncode}, not {code}\n{said_last}")
    return done


def start(
    home: Path, *arguments: str, output: Path, errors: Path | None = None, environment: Mapping[str, str] | None = None
) -> WarmProcess:
    """Start a verb in a process group of its own; both streams go to the file `output`, unless `errors` is another."""
    words = ["--home", str(home), *arguments]
    return start_warm(ENTRY, words, stdout=output, stderr=errors, environment=environment)


def run_json(
    home: Path, *arguments: str, code: int = ExitClass.OK, environment: Mapping[str, str] | None = None
) -> Nodes:
    """`m4v run … --json`: what became of every stage."""
    done = m4v(home, "run", *arguments, "--json", code=code, environment=environment)
    return {node["node_id"]: node for node in json.loads(done.stdout)["nodes"]}


def read_json(home: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    return json.loads(m4v(home, *arguments, "--json", environment=environment).stdout)


def artifact_ids(nodes: Nodes) -> dict[str, str]:
    """Every output but the report, which may hold times."""
    return {
        f"{node_id}.{name}": output["artifact_id"]
        for node_id, node in nodes.items()
        for name, output in node["outputs"].items()
        if output["kind"] != "report"
    }


def statuses(nodes: Nodes) -> set[str]:
    return {node["status"] for node in nodes.values()}


def wait_for(find: Callable[[], FoundT | None], process: WarmProcess, output: Path, what: str) -> FoundT:
    """What `find` returns at last; fails the test when the process ends before, or the time is up."""
    deadline = time.monotonic() + PIPELINE_TIMEOUT_S
    while time.monotonic() < deadline:
        found = find()
        if found:
            return found
        if process.poll() is not None:
            pytest.fail(f"it ended with {process.returncode} before {what}\n{output.read_text()[-3000:]}")
        time.sleep(0.05)
    pytest.fail(f"{what} did not come about\n{output.read_text()[-3000:]}")


def working_attempt(home: Path, node_id: str, done: float = 0.0, of: float = 0.0) -> AttemptRow | None:
    """The running attempt of a node whose stage has reported at least `done` units of at least `of`."""
    if not (home / "ledger.db").exists():
        return None
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        running = [a for a in ledger.attempts(status=Status.RUNNING) if a.node_id == node_id]
    for attempt in running:
        try:
            progress = json.loads((Path(attempt.work_dir) / "progress.json").read_bytes())
        except (OSError, ValueError):
            continue
        if progress["done"] >= done and (progress["total"] or 0.0) >= of:
            return attempt
    return None


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that are still alive after all."""
    alive = psutil.wait_procs(processes, timeout=timeout_s)[1]
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
