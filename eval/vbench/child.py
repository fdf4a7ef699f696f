"""The worker as a child process: started, watched, ended; every way it can end told in one word and a sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from m4v.core.storage import write_atomic

WORKER = Path(__file__).with_name("worker.py")
LONG_WORKER = Path(__file__).with_name("long_worker.py")
I2V_WORKER = Path(__file__).with_name("i2v_worker.py")
V2_WORKER = Path(__file__).with_name("v2_worker.py")
REQUEST, RESULT, LOG = "request.json", "result.json", "worker.log"
GRACE_S = 5.0  # between the word and the kill
_POLL_S = 0.1
_TAIL_BYTES = 2000

End = Literal["answered", "failed", "timeout", "killed", "crashed", "silent", "unreadable", "stopped"]


class Ended(NamedTuple):
    """How the child ended. `answer` is its result where it wrote one that strict JSON reads; `reason` is empty for an
    answer."""

    end: End
    answer: dict[str, Any] | None
    reason: str


def run_worker(
    python: Path,
    request: Mapping[str, object],
    folder: Path,
    variables: Mapping[str, str],
    limit_s: float,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    worker: Path = WORKER,
) -> Ended:
    """Run `worker` with `python` in `folder`, which keeps its request, result and log.

    The child has a process group of its own: time limit and stop end all that it started. An earlier result in the
    folder is removed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / RESULT
    result.unlink(missing_ok=True)
    write_atomic(folder / REQUEST, json.dumps(dict(request), sort_keys=True).encode())
    # Isolated, and without bytecode beside what others share.
    command = [str(python), "-I", "-B", "-u", str(worker), str(folder / REQUEST), str(result)]
    with (folder / LOG).open("wb") as log:
        try:
            child = subprocess.Popen(
                command, cwd=folder, env=_environment(variables), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Ended("crashed", None, f"the interpreter does not start: {error.strerror or error}")
        try:
            stopped = _wait(child, limit_s, should_stop)
        finally:
            _end_group(child)
    if stopped == "timeout":
        return Ended("timeout", None, f"took longer than the limit of {limit_s:g} s")
    if stopped == "stopped":
        return Ended("stopped", None, "was stopped")
    return _read(child.returncode, result, folder / LOG)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Ours, less what would bring this product's packages or a network into the child."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **offline, **variables}


def _wait(child: subprocess.Popen[bytes], limit_s: float, should_stop: Callable[[], bool]) -> str | None:
    end = time.monotonic() + limit_s
    while True:
        try:
            child.wait(_POLL_S)
            return None
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                return "timeout"
            if should_stop():
                return "stopped"


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End what still runs of the child's group; a child that ended by itself may have left some."""
    for word, grace in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(child.pid, word)
        except ProcessLookupError:
            break
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def _read(returncode: int, result: Path, log: Path) -> Ended:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = ", as the kernel does when memory runs out" if -returncode == signal.SIGKILL else ""
        return Ended("killed", None, f"was ended by {name}{hint}")
    if not result.is_file():
        if returncode:
            return Ended("crashed", None, f"ended with code {returncode}: {_last_line(log)}")
        return Ended("silent", None, "ended without a result")
    try:
        answer = json.loads(result.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        return Ended("unreadable", None, f"wrote a result that is no strict JSON: {error}")
    if not isinstance(answer, dict) or answer.get("status") not in ("ok", "failed"):
        return Ended("unreadable", None, "wrote a result without a status")
    if answer["status"] == "failed":
        told = answer.get("error") or {}
        return Ended("failed", answer, f"{told.get('message', 'no word why')} [{told.get('kind', 'error')}]")
    return Ended("answered", answer, "")


def _refuse_constant(token: str) -> float:
    raise ValueError(f"{token} is no number")


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing in its log")
