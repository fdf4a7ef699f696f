"""What garbage collection keeps and why, and that it deletes the rest, on both databases and both kinds of store."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from channel_house import House

from m4v.core.artifacts import MANIFEST, ArtifactKind, verify
from m4v.core.errors import ExitClass, InfrastructureError, InputError
from m4v.core.storage import Storage
from pipelines.access import Actor, Role
from pipelines.channels import promote
from pipelines.gc import Judged, collect_artifacts, finish_deletions, judge
from pipelines.gc import artifacts as collecting
from pipelines.gc.judge import resumable_since
from pipelines.gc.sizes import freed_bytes
from pipelines.holds import hold_outputs
from pipelines.ledger import ArtifactDeleted, ClaimHeld, Ledger
from pipelines.ledger.types import utc_now
from pipelines.settings import ChannelPolicy, RetentionConfig, Settings
from pipelines.store import ArtifactRecord, ArtifactStore

NOW = RetentionConfig(runs=1, promotions=2, grace_hours=0)
ADA = Actor("ada", Role.ADMIN)


def fates(house: House, retention: RetentionConfig = NOW) -> dict[str, Judged]:
    facts = house.ledger.reach_facts(retention.runs, resumable_since(retention, utc_now()))
    return {j.artifact_id: j for j in judge(facts, retention, utc_now() + timedelta(seconds=1), house.store.uri)}


def collect(house: House, retention: RetentionConfig = NOW) -> set[str]:
    done = collect_artifacts(house.ledger, house.store.uri, retention, by="ada")
    assert done.failed == {}
    return {row.artifact_id for row in done.deleted}


def pipeline(house: House, recipe: str, name: str, *, finished: bool = True) -> tuple[ArtifactRecord, ArtifactRecord]:
    """A pipeline run of two stages: a dataset and the checkpoint trained on it."""
    run = house.ledger.begin_pipeline_run(recipe, {"name": name})
    data = house.publish(ArtifactKind.DATASET, f"data {name}")
    house.run("encode", {"dataset": data}, pipeline_run_id=run)
    model = house.publish(ArtifactKind.CHECKPOINT, f"model {name}")
    house.run("train", {"checkpoint": model}, {"dataset": data}, pipeline_run_id=run)
    if finished:
        house.ledger.finish_pipeline_run(run, ExitClass.OK)
    return data, model


def test_the_last_runs_and_what_runs_stay_and_the_rest_goes(house: House) -> None:
    old, new, other = pipeline(house, "demo", "1"), pipeline(house, "demo", "2"), pipeline(house, "micro", "1m")
    running = pipeline(house, "big", "1b", finished=False)
    for name in ("2b", "3b"):
        pipeline(house, "big", name)
    found = fates(house)
    stays = {a.artifact_id for pair in (new, other, running) for a in pair}
    assert {i for i, j in found.items() if j.kept} >= stays
    assert "one of the last 1 of demo" in found[new[1].artifact_id].why
    assert "in use by pipeline run" in found[running[1].artifact_id].why
    assert "no channel, pin, run in flight" in found[old[0].artifact_id].why
    gone = collect(house)
    assert gone == {i for i, j in found.items() if not j.kept}
    assert gone >= {a.artifact_id for a in old}
    for row in house.ledger.artifacts(limit=None):
        if row.artifact_id in gone:
            assert row.deletion == "done"
            assert not Storage(row.uri).exists(MANIFEST)
            assert list(Storage(row.uri).list()) == []
        else:
            assert row.deletion is None
            verify(Storage(row.uri), row.artifact_id)
    assert collect(house) == set()
    assert house.ledger.verify_chain().ok
    assert house.ledger.rebuild() == 0


def test_an_interrupted_run_keeps_what_its_resumption_reads(house: House) -> None:
    run = house.ledger.begin_pipeline_run("demo", {})
    data = house.publish(ArtifactKind.DATASET, "data")
    house.run("encode", {"dataset": data}, pipeline_run_id=run)
    house.ledger.finish_pipeline_run(run, ExitClass.DRAINED)
    for name in ("1", "2"):
        pipeline(house, "demo", name)
    assert fates(house)[data.artifact_id].why == f"pipeline run {run} (demo) was interrupted and may be resumed"
    assert data.artifact_id not in collect(house)
    assert data.artifact_id in collect(house, NOW.model_copy(update={"state_days": 0.0}))


def test_every_root_keeps_what_it_was_made_from(house: House) -> None:
    data = house.publish(ArtifactKind.DATASET, "data")
    house.run("encode", {"dataset": data})
    names = ["promoted", "before", "long ago", "pinned", "asked", "nobody's"]
    models = {name: house.checkpoint(name, {"dataset": data}) for name in names}
    verdicts = {name: house.judge(models[name], True) for name in ("promoted", "before", "long ago", "asked")}
    settings = Settings(channels={"guarded": ChannelPolicy(approvals=1)})
    for name in ("long ago", "before", "promoted"):
        promote(house.ledger, settings, ADA, models[name].artifact_id, "prod")
    promote(house.ledger, settings, ADA, models["asked"].artifact_id, "guarded")
    house.ledger.pin(models["pinned"].artifact_id, by="ada", reason="paper")
    found = fates(house)
    why = {name: found[model.artifact_id].why for name, model in models.items()}
    assert why["promoted"] == "channel prod names it"
    assert why["before"] == "channel prod named it in entry 2"
    assert why["pinned"] == "pinned by ada: paper"
    assert why["asked"] == "its promotion to guarded waits for approval"
    assert {name for name in names if not found[models[name].artifact_id].kept} == {"long ago", "nobody's"}
    assert found[data.artifact_id].kept
    assert "was made from it" in found[data.artifact_id].why
    assert found[verdicts["promoted"].artifact_id].why == "verdict on what channel prod names"
    assert found[verdicts["before"].artifact_id].kept
    assert not found[verdicts["long ago"].artifact_id].kept
    house.ledger.unpin(models["pinned"].artifact_id, by="ada")
    assert models["pinned"].artifact_id in collect(house)
    with pytest.raises(InputError, match="not pinned"):
        house.ledger.unpin(models["pinned"].artifact_id, by="ada")
    with pytest.raises(ArtifactDeleted):
        house.ledger.pin(models["pinned"].artifact_id, by="ada", reason="late")


def test_a_takedown_at_work_keeps_what_it_cites(house: House) -> None:
    data, _ = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    case = house.ledger.open_takedown(
        {"clips": ["c"]}, reason="licence", requested_by="ada", policy={}, blocks={}, clips=[],
        artifacts=[(data.artifact_id, "dataset", "contains it")],
    )  # fmt: skip
    assert fates(house)[data.artifact_id].why == f"takedown {case.takedown_id} is at work on it"
    house.ledger.record_step(case.takedown_id, "closed")
    assert data.artifact_id in collect(house)


def test_grace_kinds_and_other_stores(house: House) -> None:
    weights = house.publish(ArtifactKind.WEIGHTS, "w")
    house.run("weights", {"weights": weights})
    data, model = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    assert all(j.kept for j in fates(house, NOW.model_copy(update={"grace_hours": 1.0})).values())
    assert fates(house)[weights.artifact_id].why == "artifacts of kind weights are always kept"
    judged = judge(house.ledger.reach_facts(1), NOW, utc_now() + timedelta(seconds=1), "s3://elsewhere/store")
    assert {j.why for j in judged if j.artifact_id in (data.artifact_id, model.artifact_id)} >= {
        "lies outside this store"
    }


def test_a_held_artifact_stays_and_a_deleted_one_cannot_be_held(house: House) -> None:
    data, model = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    run = house.ledger.begin_pipeline_run("other", {})
    house.ledger.hold(run, [(data.artifact_id, "dataset")])
    gone = collect(house)
    assert model.artifact_id in gone
    assert data.artifact_id not in gone
    with pytest.raises(ArtifactDeleted, match="bytes of this checkpoint were deleted on"):
        house.ledger.hold(run, [(model.artifact_id, "checkpoint")])
    house.ledger.finish_pipeline_run(run, ExitClass.OK)
    assert data.artifact_id in collect(house)


def test_what_was_deleted_comes_back_when_it_is_made_again(house: House) -> None:
    data, model = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    collect(house)
    run = house.ledger.begin_pipeline_run("demo", {"again": 1})
    again = house.publish(ArtifactKind.CHECKPOINT, "model 1")
    assert again == model
    house.run("train", {"checkpoint": again}, {"dataset": data}, pipeline_run_id=run, key="again")
    row = house.ledger.artifact(model.artifact_id)
    assert (row.deletion, row.deleted_at) == (None, None)
    kinds = [e.kind for e in house.ledger.events(subject=model.artifact_id, limit=None)]
    assert kinds == ["artifact.recorded", "artifact.deleted", "artifact.gone", "artifact.restored"]
    assert fates(house)[model.artifact_id].kept
    assert house.ledger.verify_chain().ok
    assert house.ledger.rebuild() == 0


def test_one_collection_at_a_time_and_publishing_waits_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _data, model = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    deleting, go_on = threading.Event(), threading.Event()

    def slow_erase(row: object) -> None:
        deleting.set()
        assert go_on.wait(300)
        real_erase(row)  # type: ignore[arg-type]

    real_erase = collecting.erase
    monkeypatch.setattr(collecting, "erase", slow_erase)
    monkeypatch.setattr("pipelines.holds.POLL_S", 0.01)
    thread = threading.Thread(target=collect, args=(house,))
    thread.start()
    assert deleting.wait(300)
    with pytest.raises(ClaimHeld):
        collect(house)
    run = house.ledger.begin_pipeline_run("other", {})
    with pytest.raises(ArtifactDeleted):
        house.ledger.hold(run, [(model.artifact_id, "checkpoint")])
    threading.Timer(0.2, go_on.set).start()
    from m4v.core.stage import OutputResult

    output = OutputResult(
        name="c", kind=ArtifactKind.CHECKPOINT, artifact_id=model.artifact_id, staging="", size_bytes=1, files=1
    )
    hold_outputs(house.ledger, run, [output])
    assert house.ledger.artifact(model.artifact_id).deletion == "done", "held only once the old bytes were gone"
    thread.join()
    again = house.publish(ArtifactKind.CHECKPOINT, "model 1")
    assert collect(house) == set(), "the pipeline run that publishes it holds it"
    verify(Storage(again.uri), again.artifact_id)


def test_a_disk_that_refuses_is_reported_and_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = pipeline(house, "demo", "1")
    pipeline(house, "demo", "2")
    real_erase = collecting.erase

    def refuse_one(row):  # type: ignore[no-untyped-def]
        if row.artifact_id == model.artifact_id:
            raise InfrastructureError("disk says no")
        real_erase(row)

    with monkeypatch.context() as patch:
        patch.setattr(collecting, "erase", refuse_one)
        done = collect_artifacts(house.ledger, house.store.uri, NOW, by="ada")
    assert done.failed == {model.artifact_id: "disk says no"}
    assert data.artifact_id in {row.artifact_id for row in done.deleted}
    assert house.ledger.artifact(model.artifact_id).deletion == "marked"
    assert [row.artifact_id for row in finish_deletions(house.ledger, "ada").deleted] == [model.artifact_id]
    assert house.ledger.artifact(model.artifact_id).deletion == "done"
    assert not Storage(model.uri).exists()


def test_shared_files_stay_with_who_else_has_them(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    (one / "shard").write_bytes(b"x" * 1000)
    (one / "own").write_bytes(b"x" * 10)
    os.link(one / "shard", two / "shard")
    assert freed_bytes([(str(one), 1010)]) == 10
    assert freed_bytes([(str(one), 1010), (str(two), 1000)]) == 1010


def test_deletions_of_the_same_bytes_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(str(tmp_path / "ledger.sqlite")) as ledger:
        house = House(ledger, ArtifactStore(str(tmp_path / "store")), tmp_path / "staging", "")
        model = house.checkpoint("model")
        row = ledger.artifact(model.artifact_id)
        place = Storage(row.uri)
        for number in range(200):
            place.write_bytes(f"extra/{number:04}", b"x")
        together, faults = threading.Barrier(4), []

        def erase_at_once() -> None:
            together.wait()
            try:
                collecting.erase(row)
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=erase_at_once) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert list(place.local_root.parent.glob(f"*{model.artifact_id}*")) == []

        other = ledger.artifact(house.checkpoint("other").artifact_id)

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(InfrastructureError, match="storage failed: PermissionError"):
            collecting.erase(other)
