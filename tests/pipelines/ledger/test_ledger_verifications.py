"""Verdicts, cancellations and starting environments in the ledger, and its filtered listings; both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from ledger_scenario import artifact

from m4v.core.errors import InputError
from pipelines.ledger import Status
from pipelines.ledger.process import process_token


def test_verdicts_are_events_in_order(scenario, ledger):
    run_id = scenario.run("k" * 64, {"dataset": artifact("made")})
    ledger.record_verification(run_id, "differs", {"outputs": {"dataset": {"made": "x"}}, "max_rel": float("inf")})
    ledger.record_verification(run_id, "identical", {})
    rows = ledger.verifications(run_id)
    assert [(r.verdict, r.subject) for r in rows] == [("differs", run_id), ("identical", run_id)]
    assert rows[0].facts["max_rel"] == "Infinity"
    assert rows[0].seq < rows[1].seq
    assert ledger.verify_chain().ok


def test_a_verdict_belongs_to_a_run(ledger):
    run_id = ledger.begin_pipeline_run("micro", {})
    ledger.record_verification(run_id, "identical", {})
    assert len(ledger.verifications(run_id)) == 1
    with pytest.raises(InputError, match="no such run"):
        ledger.record_verification("nothing", "identical", {})


def test_a_changed_verdict_breaks_the_chain(scenario, ledger):
    run_id = ledger.begin_pipeline_run("micro", {})
    ledger.record_verification(run_id, "differs", {})
    scenario.sql(
        "UPDATE event SET payload = REPLACE(payload, 'differs', 'identical') WHERE kind = 'run.verified'", guards=False
    )
    assert not ledger.verify_chain().ok


def test_a_run_remembers_the_code_it_started_with(ledger):
    code = {"code": {"commit": "c" * 40, "dirty": True}, "host": {"memory_bytes": 2**60}}
    run_id = ledger.begin_pipeline_run("micro", {}, environment=code)
    assert ledger.begun_environment(run_id)["code"] == {"commit": "c" * 40, "dirty": True}
    assert ledger.begun_environment(ledger.begin_pipeline_run("micro", {})) == {}
    assert ledger.verify_chain().ok


def test_cancellations_and_who_conducts_a_run(ledger):
    run_id = ledger.begin_pipeline_run("micro", {})
    assert ledger.runner_of(run_id) == process_token()
    ledger.record_cancelled(run_id, by="ada", reason="too slow", killed=3, status=Status.DRAINED)
    event = ledger.events(subject=run_id)[-1]
    assert (event.kind, event.payload["killed"], event.payload["by"]) == ("pipeline.cancelled", 3, "ada")
    with pytest.raises(InputError, match="no such pipeline run"):
        ledger.runner_of("nothing")


def test_stage_runs_and_attempts_by_recipe_status_and_time(scenario, ledger):
    mine, other = ledger.begin_pipeline_run("mine", {}), ledger.begin_pipeline_run("other", {})
    first = scenario.run("1" * 64, {"d": artifact("one")}, pipeline_run_id=mine, node_id="encode")
    scenario.run("2" * 64, {"d": artifact("two")}, pipeline_run_id=other, node_id="encode")
    claim = ledger.claim("3" * 64, "tester")
    failed = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l", pipeline_run_id=mine)
    ledger.finish_attempt(failed, 30, "the network is away")
    assert [r.run_id for r in ledger.runs(stage="encode", recipe="mine")] == [first]
    assert [a.attempt_id for a in ledger.attempts(stage="encode", status=Status.FAILED, recipe="mine")] == [failed]
    assert ledger.attempts(stage="train", status=Status.FAILED) == []
    every = ledger.attempts()
    assert [a.node_id for a in ledger.attempts(node_id="encode")] == ["encode", "encode"]
    assert (ledger.node_ids("encode"), ledger.node_ids("train")) == (["encode"], [])
    assert [ledger.attempts(after=a.attempt_id, limit=1) for a in every] == [[a] for a in every[1:]] + [[]]
    with pytest.raises(InputError, match="no such attempt"):
        ledger.attempts(after="nothing")
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert ledger.runs(since=soon) == ledger.attempts(since=soon) == []
    assert len(ledger.runs(since=soon - timedelta(hours=2))) == 2


def test_the_latest_run_of_a_node_that_long_has_not_run(scenario, ledger, monkeypatch):
    """Beyond the newest pipeline runs that are looked at first; never of another recipe, nor of a run without one."""
    monkeypatch.setattr("pipelines.ledger.queries._RECENT", 2)
    old = ledger.begin_pipeline_run("mine", {})
    run_id = scenario.run("1" * 64, {"d": artifact("one")}, pipeline_run_id=old, node_id="encode")
    ledger.record_node(old, "encode", stage="encode", how="ran", reason="first", run_id=run_id)
    for _ in range(3):
        newer = ledger.begin_pipeline_run("mine", {})
        ledger.record_node(newer, "encode", stage="encode", how="failed", reason="the network is away")
    other = ledger.begin_pipeline_run("other", {})
    hit = scenario.run("2" * 64, {"d": artifact("two")}, pipeline_run_id=other, node_id="encode")
    ledger.record_node(other, "encode", stage="encode", how="ran", reason="first", run_id=hit)
    assert ledger.latest_run("mine", "encode").run_id == run_id
    assert ledger.latest_runs("mine", ["encode", "train"]) == {"encode": ledger.run(run_id)}
    assert ledger.latest_run("mine", "train") is None
    assert ledger.latest_run("new", "encode") is None
    ledger.record_node(newer, "encode", stage="encode", how="hit", reason="same key", run_id=hit)
    assert ledger.latest_run("mine", "encode").run_id == hit
    assert ledger.latest_runs("mine", ["encode"]) == {"encode": ledger.run(hit)}
