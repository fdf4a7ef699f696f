"""`m4v reconcile` tells what it found and what it could not ask, and changes nothing in a dry run."""

import json
import os
import socket
from pathlib import Path

import pytest
from bench import open_bench

from m4v.core.errors import ExitClass
from pipelines.ledger import Ledger, Status

NO_CLUSTER = "#!/bin/sh\necho 'squeue: fatal: Could not establish a configuration source' >&2; exit 1\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a lost attempt, on a machine whose Slurm knows no cluster, and without a Prefect server."""
    (tmp_path / "squeue").write_text(NO_CLUSTER)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with open_bench(tmp_path / "home") as bench:
        claim = bench.ledger.claim("ab" * 32, "somebody")
        bench.ledger.begin_attempt(claim, stage="count", work_dir=str(tmp_path / "w"), log_path="none")
        bench.ledger.release(claim)
    return tmp_path / "home"  # where the fixture `m4v` works


def status(home: Path) -> Status:
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        return ledger.attempts()[0].status


def test_a_dry_run_changes_nothing_and_the_next_repairs(home, m4v):
    code, said, _ = m4v("reconcile", "--dry-run")
    assert code == ExitClass.OK
    assert "lost-attempt" in said
    assert "leave --dry-run out" in said
    assert status(home) is Status.RUNNING
    code, said, _ = m4v("reconcile", "--json")
    told = json.loads(said)
    assert [(f["kind"], f["repaired"]) for f in told["findings"]] == [("lost-attempt", True)]
    assert told["asked"] == {"processes": True, "slurm": False, "prefect": False}
    assert status(home) is Status.LOST
    code, said, _ = m4v("reconcile")
    assert "everything is as the ledger has it" in said
    assert "one that knows no cluster" in said
    assert "PREFECT_API_URL is not set" in said


def test_a_server_that_does_not_answer_keeps_nothing_else_from_being_repaired(home, m4v, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{taken.getsockname()[1]}/api")
        code, said, complained = m4v("reconcile", "--json")
    assert (code, json.loads(said)["findings"][0]["repaired"]) == (ExitClass.INFRASTRUCTURE, True)
    assert "Prefect server does not answer" in complained
    assert "Traceback" not in complained
    assert status(home) is Status.LOST
