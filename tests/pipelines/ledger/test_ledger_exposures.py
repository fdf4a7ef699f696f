"""Exposure states, ranks and stems in the ledger; what stood there before it kept them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from clip_material import TestClip, random_clips, shards_of, without, write_dataset
from ledger_scenario import Scenario, artifact

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import canonical_json
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import Storage
from pipelines.exposure.states import read_state, record_missing_states, record_state
from pipelines.ledger import Ledger
from pipelines.ledger.sample_ranks import SamplePlace, SampleRanks
from pipelines.store import ArtifactRecord
from training.config import OrderConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.sampling import SamplingPlan

ORDER = OrderConfig(frames=17, min_frames=9, tokens_per_pack=64, packs=2, image_every=0)


def state_of(dataset: str | None, init_from: str | None = None) -> ExposureState:
    return ExposureState(
        stage="17f", dataset_id=dataset, order=ORDER if dataset else None, seed=7, global_batch=(8,), cursor=5,
        init_from=init_from,
    )  # fmt: skip


def write_state(folder: Path, state: ExposureState) -> Storage:
    folder.mkdir()
    (folder / TRAINING_STATE).write_bytes(canonical_json(state.canonical()))
    return Storage(str(folder))


def test_ranks_of_many_datasets_are_those_of_each(ledger: Ledger, tmp_path: Path) -> None:
    rng = random.Random(5)
    shards = shards_of(random_clips(rng, 60))
    gone = {rng.choice(shard).clip_id for shard in shards[::3]}
    versions = {}
    for name, cut in (("whole", shards), ("less", without(shards, gone)), ("half", shards[::2])):
        record = write_dataset(tmp_path / name, cut)
        ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
        versions[record.artifact_id] = [clip for shard in cut for clip in shard]
    clips = [c.clip_id for shard in shards for c in shard]
    ranks, by_part = SampleRanks(ledger, versions), ledger.sample_parts(clips)
    parts = np.array(sorted(by_part))
    places = [
        SamplePlace(name, *place) for name in versions for part in ranks.parts(name, parts) for place in by_part[part]
    ]
    assert sorted((p.dataset_id, p.clip_id, p.sample_id, p.group) for p in places) == sorted(
        (dataset, c.clip_id, c.sample_id, c.group) for dataset, held in versions.items() for c in held
    )
    assert ranks.parts("unknown", parts) == []
    groups = sorted({c.group for shard in shards for c in shard})
    for place in places[::3]:
        for asked in (groups[:1], groups[1:3], groups):
            expected = sum(1 for c in versions[place.dataset_id] if c.group in asked and c.sample_id < place.sample_id)
            assert ranks.rank(place, asked) == expected


def test_a_state_is_kept_with_its_timetable(ledger: Ledger, tmp_path: Path) -> None:
    clips = [TestClip("web", f"{n}", size=(3, 8, 8)) for n in range(5)]
    record = write_dataset(tmp_path / "data", shards_of(clips))
    first, second = "a" * 64, "b" * 64
    record_state(ledger, first, write_state(tmp_path / "first", state_of(record.artifact_id)))
    (row,) = ledger.training_line(first)
    assert (row.stage, row.dataset_id, row.seed, row.cursor, row.init_from) == ("17f", record.artifact_id, 7, 5, None)
    (order,) = ledger.orders_without_plan()
    assert OrderConfig.model_validate(order.config) == ORDER
    # Once the dataset is indexed, the next checkpoint on it, or a back-fill, brings the timetable.
    ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
    storage = write_state(tmp_path / "second", state_of(record.artifact_id, first))
    record_state(ledger, second, storage)
    record_state(ledger, second, storage)
    assert ledger.orders_without_plan() == []
    plan = ledger.data_orders([order.order_id])[order.order_id].plan
    assert plan is not None
    assert [s.count for s in SamplingPlan.from_json(plan).streams] == [5]
    assert [r.checkpoint_id for r in ledger.training_line(second)] == [second, first]


def test_checkpoints_recorded_before_are_read_from_the_store(scenario: Scenario, tmp_path: Path) -> None:
    ledger = scenario.ledger
    clips = [TestClip("web", f"{n}", size=(3, 8, 8)) for n in range(5)]
    data = write_dataset(tmp_path / "data", shards_of(clips))
    good, bad = (artifact(name, ArtifactKind.CHECKPOINT) for name in ("good", "bad"))
    for record in (good, bad):
        place = write_state(tmp_path / str(record.summary["of"]), state_of(data.artifact_id))
        placed = ArtifactRecord(
            artifact_id=record.artifact_id, kind=record.kind, uri=place.uri, size_bytes=1, files=1, summary={}
        )
        scenario.run(record.artifact_id[:8], {"checkpoint": placed}, {}, stage="train")
    (tmp_path / "bad" / TRAINING_STATE).write_text("{")
    told = dict(record_missing_states(ledger))
    assert {i: type(e) for i, e in told.items()} == {good.artifact_id: type(None), bad.artifact_id: DataIntegrityError}
    assert ledger.checkpoints_without_exposure() == [bad.artifact_id]
    assert len(ledger.orders_without_plan()) == 1
    ledger.index_members(data.artifact_id, data.kind, Storage(data.uri))
    assert list(dict(record_missing_states(ledger))) == [bad.artifact_id]
    assert ledger.orders_without_plan() == [], "the dataset is indexed by now"
    with pytest.raises(DataIntegrityError, match="checkpoint has no"):
        read_state(Storage(str(tmp_path)))


def test_stems_pass_through_products_and_reach_what_was_made_before(scenario: Scenario) -> None:
    kind = ArtifactKind
    one, two = artifact("one", kind.CHECKPOINT), artifact("two", kind.CHECKPOINT)
    samples, scores, report = artifact("s", kind.SAMPLES), artifact("x", kind.SCORES), artifact("r", kind.REPORT)
    for name, record in (("one", one), ("two", two)):
        scenario.run(name, {"checkpoint": record}, {}, stage="train")
    scenario.run("generate", {"samples": samples}, {"checkpoint": one}, stage="generate")
    scenario.run("evaluate", {"scores": scores}, {"samples": samples}, stage="evaluate")
    scenario.run("report", {"report": report}, {"scores": scores}, stage="report")
    made = {"samples": {samples.artifact_id}, "scores": {scores.artifact_id}, "report": {report.artifact_id}}
    assert stems(scenario, one) == made
    assert stems(scenario, two) == {}
    # The same samples, byte for byte, from another checkpoint: what was made of them stems from both.
    scenario.run("generate again", {"samples": samples}, {"checkpoint": two}, stage="generate")
    assert stems(scenario, two) == made


def stems(scenario: Scenario, record: ArtifactRecord) -> dict[str, set[str]]:
    numbers = scenario.ledger.numbers_of([(record.artifact_id, str(record.kind))])
    none = np.zeros(0, dtype=np.int64)
    before, found, after = scenario.ledger.products_of([none, np.array([*numbers.values()], dtype=np.int64), none])
    assert not any(len(held) for made in (before, after) for held in made.values())
    return {kind: set(scenario.ledger.ids_of(held.tolist()).values()) for kind, held in found.items() if len(held)}
