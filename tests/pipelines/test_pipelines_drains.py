"""Drain requests through the ledger: a run in another process sees them, and only what was asked for stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bench import QUICK_RETRY, open_bench
from stages_for_faults import CountConfig, pipeline

from m4v.core.errors import ExitClass, InfrastructureError, InputError
from pipelines.attempt import RetryPolicy
from pipelines.drains import DrainRequests
from pipelines.ledger import Ledger, Status

HELD = CountConfig(label="a", items=6)
WAIT_S = 300


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "switches").mkdir()
    with open_bench(tmp_path / "home") as opened:
        yield opened


def wait_for(condition) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(ledger: Ledger):
    return ledger.attempts(status=Status.RUNNING)


def in_thread(run):
    outcomes = {}
    thread = threading.Thread(target=lambda: outcomes.update(run.run_all()))
    thread.start()
    return thread, outcomes


def test_a_request_for_a_stage_key_stops_that_stage_and_leaves_the_others(bench, tmp_path):
    (tmp_path / "switches" / "hold.a").write_text("3")
    run = bench.new_run(pipeline(tmp_path / "switches", first=HELD))
    thread, outcomes = in_thread(run)
    wait_for(lambda: running(bench.ledger))
    key = running(bench.ledger)[0].stage_key
    with Ledger.open(bench.workspace.ledger_url) as other:  # another process has its own connection
        asked = other.request_drain(stage_key=key, reason="takedown 7", requested_by="ada")
        assert other.request_drain(stage_key=key, reason="again", requested_by="bob") == asked
    thread.join(WAIT_S)
    statuses = {name: str(o.status) for name, o in outcomes.items()}
    assert statuses == {"count.a": "drained", "count.b": "ran", "total": "blocked"}
    assert "as ada asked: takedown 7" in outcomes["count.a"].error
    assert run.exit_class is ExitClass.DRAINED
    assert bench.ledger.verify_chain().ok
    # A new start of the same key is not asked: it goes on from the saved state.
    (tmp_path / "switches" / "hold.a").unlink()
    again = bench.run(pipeline(tmp_path / "switches", first=HELD)[:1])
    assert str(again["count.a"].status) == "ran"


def test_a_request_for_a_run_stops_all_of_it(bench, tmp_path):
    (tmp_path / "switches" / "hold.a").write_text("3")
    run = bench.new_run(pipeline(tmp_path / "switches", first=HELD))
    thread, outcomes = in_thread(run)
    wait_for(lambda: running(bench.ledger))
    bench.ledger.request_drain(pipeline_run_id=run.id, reason="maintenance", requested_by="ada")
    thread.join(WAIT_S)
    assert [str(o.status) for o in outcomes.values()] == ["drained", "drained", "blocked"]
    assert bench.ledger.pipeline_run(run.id).status is Status.DRAINED
    with pytest.raises(InputError, match="the pipeline run has ended"):
        bench.ledger.request_drain(pipeline_run_id=run.id, reason="late", requested_by="ada")


def test_a_run_in_another_process_is_reached(bench, tmp_path):
    script = str(Path(sys.modules["bench"].__file__))
    options = '{"count": {"items": 2000, "seconds_an_item": 0.05}, "nodes": 1}'
    command = [sys.executable, script, str(bench.workspace.home), str(tmp_path / "switches"), options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(lambda: running(bench.ledger))
        bench.ledger.request_drain(stage_key=running(bench.ledger)[0].stage_key, reason="stop", requested_by="ada")
        out, _ = process.communicate(timeout=WAIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert b'"status": "drained"' in out


def test_a_stage_that_waits_to_try_again_is_drained_too(bench, tmp_path):
    (tmp_path / "switches" / "infrastructure").touch()
    slow_retry = RetryPolicy(attempts=QUICK_RETRY.attempts, base_s=600.0, max_s=600.0)
    nodes = pipeline(tmp_path / "switches", first=CountConfig(label="a"))[:1]
    run = bench.new_run(nodes, retry=slow_retry)
    thread, outcomes = in_thread(run)
    wait_for(lambda: bench.ledger.attempts() and not running(bench.ledger))
    key = bench.ledger.attempts()[0].stage_key
    bench.ledger.request_drain(stage_key=key, reason="stop", requested_by="ada")
    thread.join(WAIT_S)
    assert str(outcomes["count.a"].status) == "drained"


def test_nothing_that_runs_nothing_to_drain(bench):
    with pytest.raises(InputError, match="nothing is running under this stage key"):
        bench.ledger.request_drain(stage_key="f" * 64, reason="x", requested_by="ada")
    with pytest.raises(InputError, match="there is no such pipeline run"):
        bench.ledger.request_drain(pipeline_run_id="nobody", reason="x", requested_by="ada")
    with pytest.raises(InputError, match="a drain is of a stage key or of a pipeline run"):
        bench.ledger.request_drain(reason="x", requested_by="ada")


def test_a_ledger_that_is_away_asks_nothing(bench, monkeypatch):
    def away(**_):
        raise InfrastructureError("no database")

    monkeypatch.setattr(bench.ledger, "drain_wanted", away)
    assert DrainRequests(bench.ledger, "run", threading.Event()).wanted() is None
