"""Ranks that hang: noticed by their heartbeats, stacks kept, the job stopped and started again; nodes left out."""

import dataclasses
import json
import time
from pathlib import Path

from stages_for_faults import BEATING, CountConfig

from m4v.core.errors import ExitClass
from pipelines.cli.run_events import event_words, supervision_json
from pipelines.launchers import Ending, LocalLauncher, NodePolicy
from pipelines.ledger.supervision import EXCLUDED, HUNG
from pipelines.nodes import NodeHealth
from pipelines.spec import StageNode
from training.heartbeat import HangLimits


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


def test_a_silent_job_that_is_not_running_does_not_hang(bench, tmp_path):
    """A job that was queued again leaves its old heartbeats until it starts."""
    from pipelines.hangs import HangWatch
    from pipelines.launchers import Job

    class Queued(LocalLauncher):
        def is_running(self, job: Job) -> bool:
            return False

    old = {"rank": 0, "pid": 1, "step": 5, "phase": "step", "at": time.time() - 9999, "median_s": 0.1}
    (tmp_path / "heartbeat.0.json").write_text(json.dumps(old))
    assert HangWatch(bench.ledger, Queued(), Job("j", tmp_path, "1"), "a").found() is None
    assert not (tmp_path / "stacks").exists()


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
