"""Two runs side by side: config, inputs, code, environment, weights, metrics, outputs, clips and samples."""

import json
import shutil
from dataclasses import replace

import pytest
from bench import open_bench
from stages_for_faults import CountConfig, pipeline

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import InputError
from m4v.core.shard_index import INDEX, SCHEMA, IndexWriter
from m4v.core.stage import OutputResult
from pipelines.compare import compare_runs, measures
from pipelines.compare.data import data_deltas, sample_pairs
from pipelines.compare.measures import delta, environment_differences
from pipelines.compare.runs import _by_name
from pipelines.ledger import ArtifactRow
from pipelines.store import ArtifactStore


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with open_bench(tmp_path_factory.mktemp("compare") / "home") as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(bench):
    """A run, and one with another config and seed of the second count."""
    first, second = bench.new_run(pipeline()), None
    first.run_all()
    nodes = pipeline(second=CountConfig(label="b", factor=5, items=4))
    second = bench.new_run(nodes)
    second.run_all()
    return first, second


def test_stages_are_paired_by_node_with_reasons(bench, runs):
    found = compare_runs(bench.workspace, bench.ledger, runs[0].id, runs[1].id)
    assert (found.kind, found.before.id, found.after.id) == ("pipeline run", runs[0].id, runs[1].id)
    a, b, total = found.stages
    assert (a.name, a.same_run, a.same_key, a.changes) == ("count.a", True, True, ())
    assert [(c.field, c.before, c.after) for c in b.of("config")] == [("factor", 2, 5), ("items", 3, 4)]
    assert not b.same_outputs
    assert total.of("input")[0].words.startswith("input part.1: ")
    assert (total.outputs[0].name, total.outputs[0].same) == ("sum", False)
    assert [(m.name, m.before, m.after, m.delta) for m in found.metrics] == [("count.b: items", 3.0, 4.0, 1.0)]
    assert found.code.files == found.environment == found.weights == found.samples == ()
    assert found.code.before_commit == found.code.after_commit
    assert b.seconds.before > 0


def test_the_json_form_is_plain_and_whole(bench, runs):
    found = compare_runs(bench.workspace, bench.ledger, runs[0].id, runs[1].id)
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema_version"] == 1
    assert data["stages"][1]["changes"][0] == {
        "component": "config", "field": "factor", "before": 2, "after": 5, "words": "config factor: 2 -> 5"
    }  # fmt: skip
    assert data["stages"][0]["same_outputs"] is True
    assert data["code"]["range"].count("..") == 1


def test_two_stage_runs_of_one_stage(bench, runs):
    ids = [run.outcomes["count.b"].run_id for run in runs]
    found = compare_runs(bench.workspace, bench.ledger, *ids)
    assert found.kind == "stage run"
    assert [c.field for c in found.config] == ["factor", "items"]
    by_artifact = [run.outcomes["count.b"].outputs["lines"].artifact_id for run in runs]
    assert compare_runs(bench.workspace, bench.ledger, *by_artifact) == found
    same = compare_runs(bench.workspace, bench.ledger, ids[0], ids[0])
    assert (same.stages[0].reason, same.stages[0].same_outputs) == ("one and the same run", True)


def test_code_weights_seed_and_lock_are_told_apart(bench, runs, monkeypatch):
    run = bench.ledger.run(runs[0].outcomes["count.a"].run_id)
    record = {**run.key_record, "weights": {"minilm": "1" * 64}, "seed": 9, "lock_digest": "2" * 64}
    record["code"] = {**record["code"], "m4v/core/rng.py": "3" * 64}
    other = replace(
        run, run_id="other", key_record=record, stage_key="4" * 64,
        environment={**run.environment, "python": "3.13.0", "libraries": {"torch": "9"}},
    )  # fmt: skip
    from pipelines.compare import compare_stage

    found = compare_stage(bench.ledger, "count.a", run, other)
    assert [c.words for c in found.of("weights")] == ["weights minilm added (111111111111)"]
    assert [c.field for c in found.of("code")] == ["m4v/core/rng.py"]
    assert found.of("seed")[0].after == 9
    assert found.of("lock")[0].words == "lock file: (none) -> 222222222222"
    assert {(d.name, d.after) for d in found.environment} >= {("python", "3.13.0"), ("library torch", "9")}


def test_runs_of_different_sorts_and_failed_attempts_are_refused(bench, runs):
    with pytest.raises(InputError, match="cannot be compared with a stage run"):
        compare_runs(bench.workspace, bench.ledger, runs[0].id, runs[0].outcomes["total"].run_id)
    key = "5" * 64
    claim = bench.ledger.claim(key, "test")
    attempt = bench.ledger.begin_attempt(claim, stage="count", work_dir="w", log_path="l")
    bench.ledger.finish_attempt(attempt, 30, "away")
    with pytest.raises(InputError, match="committed no run"):
        compare_runs(bench.workspace, bench.ledger, attempt, attempt)


def test_a_stage_that_only_one_run_has(bench, runs):
    alone = bench.new_run(pipeline()[:1])
    alone.run_all()
    found = compare_runs(bench.workspace, bench.ledger, alone.id, runs[1].id)
    assert [(s.name, s.reason) for s in found.stages[1:]] == [
        ("count.b", "only the second has it"), ("total", "only the second has it")
    ]  # fmt: skip
    assert [(m.before, m.delta) for m in found.metrics] == [(None, None)]


def test_commits_between_two_states_are_counted(tmp_path, monkeypatch):
    states = ({"commit": "a" * 40, "dirty": True, "diff": {"sha256": "d" * 64}}, {"commit": "b" * 40})
    found = measures.code_delta(*states, ())
    assert (found.range, found.commits) == ("aaaaaaaaaaaa+..bbbbbbbbbbbb", None), "neither commit is known here"
    assert found.before_diff == "d" * 64
    assert measures.code_delta(states[1], states[1], ()).commits == 0
    assert measures.code_delta({}, {}, ()).range == "unknown..unknown"


def test_scores_of_different_protocols_are_never_subtracted():
    assert delta("m", 1.0, 3.0).relative == 2.0
    assert delta("m", 0.0, 3.0).relative is None
    side_by_side = delta("m", 1.0, 3.0, "not measured alike: frames differ")
    assert (side_by_side.before, side_by_side.after, side_by_side.delta) == (1.0, 3.0, None)


def test_libraries_that_only_one_run_loaded():
    found = environment_differences({"libraries": {"torch": "2.1"}}, {"libraries": {"torch": "2.1", "av": "18"}})
    assert [(d.name, d.before, d.after) for d in found] == [("library av", None, "18")]


def test_named_lists_are_told_as_set_takes_them():
    assert _by_name({"train": [{"name": "57f", "steps": 3}]}) == {"train": {"57f": {"name": "57f", "steps": 3}}}
    assert _by_name({"sizes": [[64, 64]], "none": []}) == {"sizes": [[64, 64]], "none": []}


def publish(bench, name: str, kind: ArtifactKind) -> ArtifactRow:
    """The files below `made/NAME` as an artifact that the ledger knows."""
    folder = bench.workspace.home / "made" / name
    manifest = build_manifest(folder, kind, {})
    write_manifest(folder, manifest)
    made = OutputResult(
        name=name, kind=kind, artifact_id=manifest.artifact_id, staging=str(folder), size_bytes=manifest.size_bytes,
        files=1,
    )  # fmt: skip
    record = ArtifactStore(bench.workspace.store_uri).publish(made)
    bench.ledger.import_artifact(record)
    return bench.ledger.artifact(record.artifact_id)


def samples(bench, name: str, *videos: tuple[str, int, str]) -> ArtifactRow:
    folder = bench.workspace.home / "made" / name
    folder.mkdir(parents=True)
    rows = [{"prompt": p, "seed": s, "file": f"videos/{n}.mp4", "sha256": d} for n, (p, s, d) in enumerate(videos)]
    (folder / "samples.json").write_text(json.dumps({"videos": rows}))
    return publish(bench, name, ArtifactKind.SAMPLES)


def dataset(bench, name: str, *clips: str) -> ArtifactRow:
    """Two samples a clip, as of a clip in two buckets."""
    folder = bench.workspace.home / "made" / name
    folder.mkdir(parents=True)
    with IndexWriter(folder / INDEX) as writer:
        for clip in clips:
            for bucket in (1, 3):
                row = dict.fromkeys(SCHEMA.names) | {"sample_id": f"{clip}{bucket}", "clip_id": clip, "media": "video"}
                row |= {"source": "films", "source_id": f"{clip}.mp4", "start_us": 0, "end_us": 9, "tokens": 4}
                writer.add(row | {"bucket_t": bucket, "bucket_h": 8, "bucket_w": 8})
    return publish(bench, name, ArtifactKind.DATASET)


def test_clips_of_two_datasets_are_counted_once_each(bench):
    old, new = dataset(bench, "v1", "c1", "c2", "c3"), dataset(bench, "v2", "c2", "c3", "c4", "c5")
    (found,) = data_deltas(bench.workspace, bench.ledger, [("encode", old)], [("encode", new)])
    assert (found.before, found.after, found.added, found.removed, found.common) == (3, 4, 2, 1, 2)
    assert [c["clip_id"] for c in found.added_examples] == ["c4", "c5"]
    assert [c["source_id"] for c in found.removed_examples] == ["c1.mp4"]
    shutil.rmtree(new.uri)
    (gone,) = data_deltas(bench.workspace, bench.ledger, [("encode", old)], [("encode", new)])
    assert gone.added is None
    assert gone.note


def test_samples_of_one_prompt_and_seed_stand_side_by_side(bench):
    old = samples(bench, "old", ("a cat", 0, "1" * 64), ("a cat", 1, "2" * 64), ("a dog", 0, "3" * 64))
    new = samples(bench, "new", ("a cat", 0, "1" * 64), ("a cat", 1, "9" * 64), ("a fox", 0, "4" * 64))
    pairs = sample_pairs([("generate.trained", old)], [("generate.trained", new)])
    assert [(p.prompt, p.seed, p.same) for p in pairs] == [
        ("a cat", 0, True), ("a cat", 1, False), ("a dog", 0, False), ("a fox", 0, False)
    ]  # fmt: skip
    assert pairs[1].before.uri == old.uri
    assert pairs[1].after.file == "videos/1.mp4"
    assert (pairs[2].after, pairs[3].before) == (None, None)


def test_data_that_only_one_run_has_is_said(bench):
    row = dataset(bench, "alone", "c1")
    (found,) = data_deltas(bench.workspace, bench.ledger, [("encode", row)], [])
    assert (found.before_id, found.after_id, found.note) == (row.artifact_id, None, "only the first run has one")
