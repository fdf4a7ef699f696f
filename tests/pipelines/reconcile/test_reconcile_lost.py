"""Attempts and runs whose process is gone: found without a change, then closed, and what they left is ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bench import open_bench, wait_for, work_log
from warm_start import start_warm

from m4v.core.errors import ExitClass
from pipelines.ledger import Ledger, Status
from pipelines.processes import WORK_DIR_VARIABLE, survivors
from pipelines.reconcile import FindingKind, reconcile_lost


@pytest.fixture
def killed_home(tmp_path: Path) -> Path:
    """A home whose run was killed, supervisors and all, in the middle of its first stage."""
    home, switches = tmp_path / "home", tmp_path / "switches"
    switches.mkdir()
    options = json.dumps({"nodes": 1, "count": {"items": 1000, "seconds_an_item": 0.05}})
    process = start_warm("bench:from_command_line", [str(home), str(switches), options], stdout=tmp_path / "said.txt")
    wait_for(lambda: len(work_log(switches)) >= 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return home


def test_what_a_killed_run_left_open_is_found_then_closed_once(killed_home):
    with Ledger.open(f"sqlite:///{killed_home / 'ledger.db'}") as ledger:
        (attempt,), (run,) = ledger.attempts(), ledger.pipeline_runs()
        folder = Path(attempt.work_dir)
        wait_for(lambda: not survivors(folder))  # its supervisor ends the stage
        looked = reconcile_lost(ledger, apply=False)
        expected = [(FindingKind.LOST_ATTEMPT, attempt.attempt_id), (FindingKind.LOST_RUN, run.pipeline_run_id)]
        assert [(f.kind, f.subject) for f in looked] == expected
        assert not any(f.repaired for f in looked)
        assert ledger.attempt(attempt.attempt_id).status is Status.RUNNING
        assert [(f.kind, f.repaired) for f in reconcile_lost(ledger, apply=True)] == [(k, True) for k, _ in expected]
        closed = ledger.attempt(attempt.attempt_id)
        assert (closed.status, closed.exit_class) == (Status.LOST, ExitClass.INFRASTRUCTURE)
        assert ledger.pipeline_run(run.pipeline_run_id).status is Status.LOST
        assert reconcile_lost(ledger, apply=True) == []
        assert ledger.verify_chain().ok


def test_a_process_that_a_lost_attempt_left_is_killed(killed_home):
    with Ledger.open(f"sqlite:///{killed_home / 'ledger.db'}") as ledger:
        folder = Path(ledger.attempts()[0].work_dir)
        wait_for(lambda: not survivors(folder))
        environment = os.environ | {WORK_DIR_VARIABLE: f"{folder}/"}
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
        wait_for(lambda: bool(survivors(folder)))
        (found,) = [f for f in reconcile_lost(ledger, apply=True) if f.kind is FindingKind.LEFT_PROCESS]
        assert str(left.pid) in found.says
        assert left.wait(60) == -signal.SIGKILL


@pytest.fixture
def bench_of_a_late_holder(tmp_path: Path):
    """This process conducts a run whose claim somebody else took; its stage is still alive."""
    folder = tmp_path / "w"
    with open_bench(tmp_path / "home") as bench:
        run = bench.ledger.begin_pipeline_run("bench", {"name": "bench"})
        claim = bench.ledger.claim("ab" * 32, "late")
        bench.ledger.begin_attempt(
            claim, stage="count", work_dir=str(folder), log_path="none", pipeline_run_id=run, node_id="count.a"
        )
        bench.ledger.release(claim)
        bench.ledger.claim("ab" * 32, "another")
        environment = os.environ | {WORK_DIR_VARIABLE: f"{folder}/"}
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
        try:
            wait_for(lambda: bool(survivors(folder)))
            yield bench.ledger, left
        finally:
            left.kill()
            left.wait()


def test_a_run_that_is_at_work_is_left_alone(tmp_path):
    with open_bench(tmp_path / "home") as bench:
        bench.ledger.begin_pipeline_run("bench", {"name": "bench"})
        claim = bench.ledger.claim("ab" * 32, "somebody")
        bench.ledger.begin_attempt(claim, stage="count", work_dir=str(tmp_path), log_path=str(tmp_path / "log"))
        assert reconcile_lost(bench.ledger, apply=True) == []


def test_a_run_that_lives_finds_out_by_itself_and_its_stage_is_not_killed(bench_of_a_late_holder):
    ledger, left = bench_of_a_late_holder
    kinds = [found.kind for found in reconcile_lost(ledger, apply=True)]
    assert kinds == [FindingKind.LOST_ATTEMPT], "somebody else has its claim"
    assert left.poll() is None
