"""Attempts, stage runs and pipeline runs, on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from ledger_scenario import Scenario, artifact, new_run, reference

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.errors import ExitClass, InputError
from m4v.core.stage import Progress
from pipelines.ledger import ClaimLost, Exactness, Ledger, NodeOutcome, Status, new_id


def test_a_committed_run_comes_back_whole(scenario: Scenario, ledger: Ledger) -> None:
    clips, dataset = artifact("clips", ArtifactKind.CLIPS), artifact("dataset")
    scenario.run("key-curate", {"clips": clips}, stage="curate")
    before = datetime.now(UTC)
    run_id = scenario.run("key-encode", {"dataset": dataset}, {"clips": clips}, metrics={"clips": 12, "psnr": 31.5})
    run = ledger.find_run("key-encode")
    assert run is not None
    assert run == ledger.run(run_id) == ledger.runs(stage="encode")[0]
    assert (run.stage, run.stage_version, run.stage_key, run.generation) == ("encode", 1, "key-encode", 1)
    assert run.key_record == {"stage": "encode", "seed": 7}
    assert run.config == {"width": 64}
    assert run.config_digest == digest_json({"width": 64})
    assert run.environment == {"python": "3.11"}
    assert (run.seed, run.exactness) == (7, Exactness.BIT)
    assert run.metrics == {"clips": 12, "psnr": 31.5}
    assert [(p.name, p.artifact_id, p.kind) for p in run.inputs] == [("clips", clips.artifact_id, ArtifactKind.CLIPS)]
    assert run.output("dataset").artifact_id == dataset.artifact_id
    assert before <= run.committed_at <= datetime.now(UTC)
    assert run.committed_at.utcoffset() == timedelta(0)
    row = ledger.artifact(dataset.artifact_id)
    assert (row.kind, row.uri, row.size_bytes, row.files, row.summary) == (
        ArtifactKind.DATASET, "store/dataset", 7, 1, {"of": "dataset"},
    )  # fmt: skip
    with pytest.raises(InputError, match="no such output: 'nothing'"):
        run.output("nothing")


def test_an_unknown_key_has_no_run(ledger: Ledger) -> None:
    assert ledger.find_run("never") is None


def test_an_attempt_is_visible_before_its_stage_runs(scenario: Scenario, ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    attempt_id = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="w/log", launcher="local")
    with Ledger.open(scenario.url) as other:
        attempt = other.attempt(attempt_id)
        assert (attempt.status, attempt.pid, attempt.number, attempt.fence) == (Status.RUNNING, None, 1, claim.fence)
        assert (attempt.work_dir, attempt.log_path, attempt.finished_at) == ("w", "w/log", None)
        ledger.launched(attempt_id, pid=4242, job="m4v-train-1")
        assert (other.attempt(attempt_id).pid, other.attempt(attempt_id).job) == (4242, "m4v-train-1")


def test_progress_is_shown_until_the_attempt_ends(ledger: Ledger) -> None:
    attempt_id = ledger.begin_attempt(ledger.claim("key", "me"), stage="train", work_dir="w", log_path="l")
    ledger.heartbeat(attempt_id, Progress(done=3, total=10, unit="steps", eta_s=7.5))
    shown = ledger.attempt(attempt_id)
    assert shown.progress is not None
    assert (shown.progress["done"], shown.progress["unit"]) == (3, "steps")
    assert shown.heartbeat_at is not None
    assert shown.heartbeat_at >= shown.started_at
    ledger.finish_attempt(attempt_id, ExitClass.INFRASTRUCTURE, "disk full", {"steps": 3})
    ledger.heartbeat(attempt_id, Progress(done=4))
    ended = ledger.attempt(attempt_id)
    assert ended.progress == shown.progress
    assert (ended.status, ended.exit_class, ended.message) == (Status.FAILED, 30, "disk full")
    assert ended.metrics == {"steps": 3}
    assert ended.duration_s is not None
    assert ended.duration_s >= 0


@pytest.mark.parametrize(
    ("exit_class", "status"),
    [(0, "succeeded"), (1, "failed"), (10, "failed"), (20, "failed"), (30, "failed"), (40, "drained"), (50, "failed"),
     (60, "refused"), (-9, "failed")],
)  # fmt: skip
def test_the_first_verdict_on_an_attempt_stands(ledger: Ledger, exit_class: int, status: str) -> None:
    attempt_id = ledger.begin_attempt(ledger.claim("key", "me"), stage="train", work_dir="w", log_path="l")
    ledger.finish_attempt(attempt_id, exit_class, "first")
    ledger.finish_attempt(attempt_id, ExitClass.BUG, "second")
    attempt = ledger.attempt(attempt_id)
    assert (attempt.status, attempt.exit_class, attempt.message) == (status, exit_class, "first")


def test_attempts_are_numbered_and_the_one_before_is_closed_as_lost(ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    first = ledger.begin_attempt(claim, stage="train", work_dir="w1", log_path="l")
    name = new_id()
    second = ledger.begin_attempt(claim, stage="train", work_dir="w2", log_path="l", attempt_id=name)
    assert second == name
    assert [(a.attempt_id, a.number, a.status) for a in ledger.attempts(stage_key="key")] == [
        (second, 2, Status.RUNNING),
        (first, 1, Status.LOST),
    ]
    assert ledger.attempts(status=Status.LOST)[0].exit_class == ExitClass.INFRASTRUCTURE


def test_unknown_attempts_are_named(ledger: Ledger) -> None:
    for call in (lambda: ledger.finish_attempt("nope", 0), lambda: ledger.launched("nope", pid=1)):
        with pytest.raises(InputError, match="no such attempt: 'nope'"):
            call()


def test_committing_twice_gives_the_same_run(ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
    outputs = {"dataset": artifact("d")}
    first = ledger.commit_run(claim, attempt, new_run("key"), [], outputs)
    events = len(ledger.events(limit=None))
    assert ledger.commit_run(claim, attempt, new_run("key"), [], outputs) == first
    assert len(ledger.events(limit=None)) == events


def test_an_equal_run_is_adopted_by_a_later_attempt(scenario: Scenario, ledger: Ledger) -> None:
    first = scenario.run("key", {"dataset": artifact("d")})
    assert scenario.run("key", {"dataset": artifact("d")}) == first
    assert [a.run_id for a in ledger.attempts(stage_key="key")] == [first, first]
    assert len(ledger.runs()) == 1
    assert ledger.events(subject=first)[-1].kind == "run.adopted"


def test_other_bytes_from_an_equal_key_make_a_new_generation(scenario: Scenario, ledger: Ledger) -> None:
    first = scenario.run("key", {"dataset": artifact("d1")})
    second = scenario.run("key", {"dataset": artifact("d2")})
    assert second != first
    newest = ledger.find_run("key")
    assert newest is not None
    assert (newest.run_id, newest.generation) == (second, 2)
    diverged = [e for e in ledger.events(subject=second) if e.kind == "run.diverged"]
    assert diverged[0].payload == {"stage_key": "key", "from": first}


def test_a_commit_without_the_live_fence_leaves_nothing(ledger: Ledger) -> None:
    lost = ledger.claim("key", "me")
    attempt = ledger.begin_attempt(lost, stage="encode", work_dir="w", log_path="l")
    ledger.release(lost)
    mine = ledger.claim("key", "you")
    events = len(ledger.events(limit=None))
    with pytest.raises(ClaimLost, match=r"fence 1 is no longer live: you on .* holds fence 2"):
        ledger.commit_run(lost, attempt, new_run("key"), [], {"dataset": artifact("d")})
    with pytest.raises(ClaimLost):
        ledger.begin_attempt(lost, stage="encode", work_dir="w", log_path="l")
    assert ledger.artifacts() == []
    assert ledger.find_run("key") is None
    assert len(ledger.events(limit=None)) == events
    ledger.release(mine)
    with pytest.raises(ClaimLost, match="it was released"):
        ledger.commit_run(mine, attempt, new_run("key"), [], {"dataset": artifact("d")})


def test_a_commit_with_an_unknown_input_leaves_nothing(ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    attempt = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
    with pytest.raises(InputError, match="does not know input clips"):
        ledger.commit_run(
            claim, attempt, new_run("key"), [reference(artifact("stranger"), "clips")], {"dataset": artifact("d")}
        )
    assert ledger.artifacts() == []
    assert ledger.attempt(attempt).status == Status.RUNNING
    with pytest.raises(InputError, match="another stage key"):
        ledger.commit_run(claim, attempt, new_run("other"), [], {})


def test_measurements_may_be_nan_and_seeds_large(ledger: Ledger) -> None:
    claim = ledger.claim("key", "me")
    attempt = ledger.begin_attempt(claim, stage="train", work_dir="w", log_path="l")
    metrics = {"loss": [0.5, math.nan, -math.inf], "bytes": 2**60, "flops": 1.5e18, "nested": {"rate": math.inf}}
    run = new_run("key", seed=2**63 + 1, exactness=Exactness.SAMPLE)
    ledger.commit_run(claim, attempt, run, [], {"dataset": artifact("d")}, metrics)
    stored = ledger.find_run("key")
    assert stored is not None
    assert (stored.seed, stored.exactness) == (2**63 + 1, Exactness.SAMPLE)
    assert stored.metrics == {
        "loss": [0.5, "NaN", "-Infinity"], "bytes": str(2**60), "flops": 1.5e18, "nested": {"rate": "Infinity"},
    }  # fmt: skip
    assert ledger.verify_chain().ok


def test_imported_and_moved_artifacts(ledger: Ledger) -> None:
    weights = artifact("clip-vit", ArtifactKind.WEIGHTS)
    ledger.import_artifact(weights)
    ledger.import_artifact(weights)
    assert len(ledger.events()) == 1
    elsewhere = type(weights)(
        artifact_id=weights.artifact_id, kind=weights.kind, uri="s3://bucket/x", size_bytes=8, files=1, summary={}
    )
    ledger.import_artifact(elsewhere)
    row = ledger.artifact(weights.artifact_id)
    assert (row.uri, row.summary) == ("s3://bucket/x", {"of": "clip-vit"})
    assert ledger.producers(weights.artifact_id) == []


def test_equal_bytes_of_two_kinds_are_two_artifacts(scenario: Scenario, ledger: Ledger) -> None:
    scenario.run("k1", {"a": artifact("same", ArtifactKind.SCORES)})
    scenario.run("k2", {"b": artifact("same", ArtifactKind.REPORT)})
    assert {a.kind for a in ledger.artifacts()} == {ArtifactKind.SCORES, ArtifactKind.REPORT}
    assert [a.kind for a in ledger.artifacts(kind=ArtifactKind.REPORT)] == [ArtifactKind.REPORT]
    same = artifact("same").artifact_id
    assert ledger.artifact(same[:20]).kind == ArtifactKind.REPORT
    assert ledger.artifact(same[:20], ArtifactKind.SCORES).kind == ArtifactKind.SCORES
    with pytest.raises(InputError, match="no clips of this id"):
        ledger.artifact(same, "clips")


def test_producers_and_consumers(scenario: Scenario, ledger: Ledger) -> None:
    clips = artifact("clips")
    made = scenario.run("k1", {"clips": clips})
    used = [scenario.run(f"k{i}", {"x": artifact(f"x{i}")}, {"clips": clips}) for i in (2, 3)]
    assert [r.run_id for r in ledger.producers(clips.artifact_id)] == [made]
    assert [r.run_id for r in ledger.consumers(clips.artifact_id)] == used


def test_listings_are_newest_first_and_limited(scenario: Scenario, ledger: Ledger) -> None:
    ids = [scenario.run(f"k{i}", {"x": artifact(f"x{i}")}) for i in range(4)]
    assert [r.run_id for r in ledger.runs(limit=3)] == ids[:0:-1]
    assert [r.run_id for r in ledger.runs(stage_key="k2")] == [ids[2]]
    assert ledger.runs(stage="train") == []
    assert len(ledger.attempts(limit=2)) == 2
    assert len(ledger.artifacts(limit=None)) == 4


class TestPrefixes:
    def test_a_unique_prefix_is_enough(self, scenario: Scenario, ledger: Ledger) -> None:
        run_id = scenario.run("key", {"x": artifact("x")})
        assert ledger.run(run_id[:14]).run_id == run_id
        assert ledger.artifact(artifact("x").artifact_id[:6]).artifact_id == artifact("x").artifact_id

    def test_a_shared_prefix_lists_what_it_may_mean(self, scenario: Scenario, ledger: Ledger) -> None:
        ids = [scenario.run(f"k{i}", {"x": artifact(f"x{i}")}) for i in range(2)]
        with pytest.raises(InputError, match=r"more than one run begins so: '1'.*one of " + ", ".join(ids)):
            ledger.run("1")

    def test_an_unknown_prefix_gets_near_ids(self, scenario: Scenario, ledger: Ledger) -> None:
        known = artifact("x").artifact_id
        scenario.run("key", {"x": artifact("x")})
        typo = known[:5] + ("0" if known[5] != "0" else "1") + known[6:12]
        with pytest.raises(InputError, match=f"no such artifact: '{typo}'.*did you mean {known}"):
            ledger.artifact(typo)

    @pytest.mark.parametrize("wild", ["%", "_", "", "1%"])
    def test_wildcards_are_letters(self, scenario: Scenario, ledger: Ledger, wild: str) -> None:
        scenario.run("key", {"x": artifact("x")})
        with pytest.raises(InputError, match="no such run"):
            ledger.run(wild)

    def test_resolve_finds_any_kind(self, scenario: Scenario, ledger: Ledger) -> None:
        pipeline = ledger.begin_pipeline_run("demo", {})
        run_id = scenario.run("key", {"x": artifact("x")})
        assert ledger.resolve(run_id) == ledger.run(run_id)
        assert ledger.resolve(pipeline) == ledger.pipeline_run(pipeline)
        assert ledger.resolve(scenario.attempts[0]) == ledger.attempt(scenario.attempts[0])
        assert ledger.resolve(artifact("x").artifact_id[:12]) == ledger.artifact(artifact("x").artifact_id)
        with pytest.raises(InputError, match="more than one id begins so: '1'"):
            ledger.resolve("1")
        with pytest.raises(InputError, match="no such id: 'zzz'"):
            ledger.resolve("zzz")


class TestPipelineRuns:
    def test_a_pipeline_run_from_begin_to_end(self, scenario: Scenario, ledger: Ledger) -> None:
        resolved = {"name": "demo", "seed": 3}
        pipeline = ledger.begin_pipeline_run("demo", resolved, trigger="schedule")
        begun = ledger.pipeline_run(pipeline)
        assert (begun.recipe, begun.resolved, begun.trigger, begun.status) == ("demo", resolved, "schedule", "running")
        assert begun.recipe_digest == digest_json(resolved)
        run_id = scenario.run("key", {"x": artifact("x")}, pipeline_run_id=pipeline, node_id="encode")
        ledger.record_node(
            pipeline, "encode", stage="encode", how="running", reason="no run of this key", stage_key="key"
        )
        ledger.record_node(pipeline, "encode", stage="encode", how="ran", reason="no run of this key", run_id=run_id)
        ledger.record_node(pipeline, "gate", stage="gate", how=NodeOutcome.SKIPPED, reason="--until encode")
        assert [(n.node_id, n.how, n.run_id) for n in ledger.nodes(pipeline)] == [
            ("encode", NodeOutcome.RAN, run_id),
            ("gate", NodeOutcome.SKIPPED, None),
        ]
        assert [a.attempt_id for a in ledger.attempts(pipeline_run_id=pipeline)] == scenario.attempts
        ledger.finish_pipeline_run(pipeline, ExitClass.OK)
        ledger.finish_pipeline_run(pipeline, ExitClass.BUG, "too late")
        ended = ledger.pipeline_runs(recipe="demo")[0]
        assert (ended.status, ended.exit_class, ended.message) == (Status.SUCCEEDED, 0, "")
        assert ended.finished_at is not None
        assert ended.finished_at >= ended.started_at

    def test_a_hit_leaves_a_reuse_edge_and_counts_as_the_latest_run(self, scenario: Scenario, ledger: Ledger) -> None:
        first, second = (ledger.begin_pipeline_run("demo", {"n": n}) for n in (1, 2))
        run_id = scenario.run("key", {"x": artifact("x")}, pipeline_run_id=first, node_id="encode")
        other = scenario.run("key2", {"x": artifact("y")})
        ledger.record_node(first, "encode", stage="encode", how="ran", reason="new", run_id=other)
        assert ledger.latest_run("demo", "encode") == ledger.run(other)
        ledger.record_node(
            second, "encode", stage="encode", how="hit", reason="equal key, outputs verify", run_id=run_id
        )
        assert ledger.latest_run("demo", "encode") == ledger.run(run_id)
        third = ledger.begin_pipeline_run("demo", {"n": 3})
        ledger.record_node(third, "encode", stage="encode", how="failed", reason="exit 30")
        assert ledger.latest_run("demo", "encode") == ledger.run(run_id)
        assert ledger.latest_runs("demo", ["encode", "train"]) == {"encode": ledger.run(run_id)}
        assert ledger.latest_run("demo", "train") is None
        assert ledger.latest_run("micro", "encode") is None
        (edge,) = ledger.lineage_up(artifact("x").artifact_id).reuses
        assert (edge.pipeline_run_id, edge.recipe, edge.node_id, edge.run_id) == (second, "demo", "encode", run_id)
        assert edge.reason == "equal key, outputs verify"

    def test_nodes_must_name_what_the_ledger_knows(self, ledger: Ledger) -> None:
        pipeline = ledger.begin_pipeline_run("demo", {})
        with pytest.raises(InputError, match="names its run"):
            ledger.record_node(pipeline, "encode", stage="encode", how="hit", reason="r")
        with pytest.raises(InputError, match="no such run: 'nope'"):
            ledger.record_node(pipeline, "encode", stage="encode", how="ran", reason="r", run_id="nope")
        with pytest.raises(InputError, match="no such pipeline run"):
            ledger.record_node("nope", "encode", stage="encode", how="skipped", reason="r")


def test_mean_duration_counts_all_attempts_of_a_run(scenario: Scenario, ledger: Ledger) -> None:
    assert ledger.mean_duration("encode") is None
    pipeline = ledger.begin_pipeline_run("demo", {})
    claim = ledger.claim("key", "tester")
    drained = ledger.begin_attempt(claim, stage="encode", work_dir="w", log_path="l")
    ledger.finish_attempt(drained, ExitClass.DRAINED)
    ledger.release(claim)
    scenario.run("key", {"x": artifact("x")}, pipeline_run_id=pipeline, node_id="encode.a")
    # Whole attempts of 100 s and 20 s, then a run of another node of 10 s.
    for attempt, seconds in ((drained, 100), (scenario.attempts[0], 20)):
        _lasted(scenario, attempt, seconds)
    assert ledger.mean_duration("encode") == pytest.approx(120)
    scenario.run("key2", {"x": artifact("y")}, pipeline_run_id=pipeline, node_id="encode.b")
    _lasted(scenario, scenario.attempts[1], 10)
    assert ledger.mean_duration("encode") == pytest.approx(65)
    assert ledger.mean_duration("encode", last=1) == pytest.approx(10)
    assert ledger.mean_duration("encode", recipe="demo", node_id="encode.a") == pytest.approx(120)
    assert ledger.mean_duration("encode", config_digest=digest_json({"width": 64})) == pytest.approx(65)
    assert ledger.mean_duration("encode", recipe="micro") is None
    assert ledger.mean_duration("encode", config_digest="other") is None


def _lasted(scenario: Scenario, attempt_id: str, seconds: float) -> None:
    ended = scenario.ledger.attempt(attempt_id).started_at + timedelta(seconds=seconds)
    form = "%Y-%m-%dT%H:%M:%S.%fZ"
    scenario.sql(f"UPDATE attempt SET finished_at = '{ended.strftime(form)}' WHERE attempt_id = '{attempt_id}'")


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {len(i) for i in ids} == {16}
