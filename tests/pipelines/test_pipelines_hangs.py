"""Ranks that hang: noticed by their heartbeats, stacks kept, the job stopped and started again; nodes left out."""

import dataclasses
import json
import time
from pathlib import Path

from stages_for_faults import BEATING, CountConfig

from m4v.core.errors import ExitClass
from pipelines import hangs
from pipelines.cli.run_events import event_words, supervision_json
from pipelines.hangs import HangWatch
from pipelines.launchers import Ending, Job, LocalLauncher, NodePolicy
from pipelines.ledger.supervision import EXCLUDED, HUNG
from pipelines.nodes import NodeHealth
from pipelines.spec import StageNode
from training.heartbeat import HangLimits

LIMIT_S = 1.0


def test_a_hang_is_dumped_stopped_and_retried(bench, switches, monkeypatch):
    monkeypatch.setattr("pipelines.hangs.LOOK_S", 0.2)
    bench.launcher = LocalLauncher(hang=HangLimits(factor=1.0, least_s=4.0, phase_s=120.0))
    (switches / "hang").write_text("1")
    node = StageNode("beating", BEATING, CountConfig(items=6), locations={"switches": str(switches)})
    outcome = bench.run([node])["beating"]
    assert outcome.status == "ran"
    again, hung = bench.ledger.attempts(stage_key=outcome.stage_key)
    assert (again.exit_class, hung.exit_class) == (ExitClass.OK, ExitClass.INFRASTRUCTURE)
    assert hung.message.startswith("hung: no step for")
    assert "wait_for_nobody" in Path(hung.work_dir, "stacks.0.txt").read_text()
    (event,) = supervision_json(bench.ledger, [hung])
    assert event["event"] == HUNG
    assert any("wait_for_nobody" in line for line in event["facts"]["stacks"]["0"])
    assert "rank 0" in event_words(HUNG, event["facts"])
    assert bench.ledger.verify_chain().ok


class Silent(LocalLauncher):
    """Has one job, whose last heartbeat is hours old; `runs` is what it says of it."""

    def __init__(self, folder: Path, runs: bool) -> None:
        super().__init__(hang=HangLimits(factor=1.0, least_s=LIMIT_S))
        self.runs, self.job, self.cancelled = runs, Job("j", folder, "1"), False
        old = {"rank": 0, "pid": 1, "step": 5, "phase": "step", "at": time.time() - 9999, "median_s": 0.1}
        (folder / "heartbeat.0.json").write_text(json.dumps(old))
        (folder / "stacks.0.txt").write_text("wait_for_nobody")

    def is_running(self, job: Job) -> bool:
        return self.runs

    def cancel(self, job: Job) -> None:
        self.cancelled = True


def looks(watch: HangWatch, count: int) -> list[Ending | None]:
    found = []
    for _ in range(count):
        time.sleep(1.1 * hangs.LOOK_S)
        found.append(watch.found())
    return found


def test_silence_counts_while_the_job_runs_and_somebody_looks(bench, tmp_path, monkeypatch):
    """A job that is suspended or queued again leaves its old heartbeats, and so does a machine that was away."""
    monkeypatch.setattr(hangs, "LOOK_S", LIMIT_S / 10)
    launcher = Silent(tmp_path, runs=False)
    watch = HangWatch(bench.ledger, launcher, launcher.job, attempt(bench))
    assert looks(watch, 15) == [None] * 15, "not running"
    launcher.runs = True
    for _ in range(3):
        time.sleep(2 * LIMIT_S)  # nobody looked
        assert watch.found() is None
    launcher.runs = False
    assert looks(watch, 1) == [None]
    launcher.runs = True
    found = looks(watch, 12)
    assert found[:4] == [None] * 4, "it runs again, and has the whole limit again"
    assert any(ending is not None and ending.message.startswith("hung: no step for") for ending in found)
    assert launcher.cancelled


def attempt(bench) -> str:
    claim = bench.ledger.claim("ab" * 32, "test")
    return bench.ledger.begin_attempt(claim, stage="s", work_dir="w", log_path="l", launcher="slurm")


def test_a_node_that_failed_too_often_is_left_out_with_its_reason(bench):
    launcher = LocalLauncher()
    launcher.name, launcher.nodes = "slurm", NodePolicy(failures=2, days=7.0)
    health, attempt_id = NodeHealth(bench.ledger, launcher), attempt(bench)
    broken = Ending(ExitClass.INFRASTRUCTURE, "killed by SIGKILL", nodes=("n1",))
    health.failed(attempt_id, broken)
    assert health.excluded(attempt_id) == ()
    health.failed(attempt_id, dataclasses.replace(broken, message="Xid 79", nodes=("n1", "n2")))
    assert health.excluded(attempt_id) == ("n1",)
    (event,) = bench.ledger.supervision([attempt_id])
    assert event.kind == EXCLUDED
    assert event_words(EXCLUDED, event.payload) == "n1 failed 2 times: Xid 79"
    assert bench.ledger.node_failures("other", 7.0) == {}
    assert bench.ledger.node_failures("slurm", 0.0) == {}
