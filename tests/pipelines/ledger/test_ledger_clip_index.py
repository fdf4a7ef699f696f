"""The clip index against brute force: membership, groups, ranks; kills and concurrent writers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from clip_material import TestClip, random_clips, recorded, shards_of, without, write_dataset, write_table
from ledger_scenario import Scenario, artifact, kill_self, start_child, wait_child
from sqlalchemy import select, text

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.ledger import Ledger, clip_index
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.schema import Base
from pipelines.membership import SampleGroup, members
from pipelines.store import ArtifactRecord

_TABLES = [t for t in Base.metadata.sorted_tables if t.name in {m.__tablename__ for m in (
    tables.ClipSource, tables.SampleGroup, tables.ClipPart, tables.ClipIndex, tables.ArtifactPart,
    tables.ArtifactGroup, tables.PartSample, tables.PartGroup, tables.PartIds, tables.Clip, tables.SourceUrl,
)}]  # fmt: skip


def take_in(ledger: Ledger, record: ArtifactRecord) -> int:
    ledger.import_artifact(record)
    return ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))


def contents(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the index; hash blocks are left out, whose cut depends on how the rows came."""
    with ledger._db.read() as session:
        return {
            t.name: sorted(tuple(r) for r in session.execute(select(*[c for c in t.c if c.name not in _FREE])))
            for t in _TABLES
        }


_FREE = {"done_rows", "block_no"}


class Brute:
    """What the answers should be, from the rows themselves."""

    def __init__(self) -> None:
        self.held: dict[str, set[str]] = {}
        self.datasets: dict[str, list[TestClip]] = {}

    def table(self, record: ArtifactRecord, clips: Sequence[TestClip]) -> None:
        self.held[record.artifact_id] = {c.clip_id for c in clips if c.kept}

    def dataset(self, record: ArtifactRecord, shards: Sequence[Sequence[TestClip]]) -> None:
        self.datasets[record.artifact_id] = [c for s in shards for c in s]
        self.held[record.artifact_id] = {c.clip_id for s in shards for c in s}

    def artifacts_with(self, ids: set[str]) -> dict[str, set[str]]:
        return {a: ids & held for a, held in self.held.items() if ids & held}

    def groups(self, dataset: str) -> dict[tuple[str, str, int, int, int], int]:
        return dict(Counter(c.group for c in self.datasets[dataset]))

    def rank(self, dataset: str, groups: set[SampleGroup], sample: str) -> int:
        return sum(c.group in groups and c.sample_id < sample for c in self.datasets[dataset])


@pytest.mark.parametrize("seed", range(4))
def test_membership_groups_and_ranks_equal_brute_force(
    ledger: Ledger, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((members, "BATCH_ROWS", 7), (members, "_READ_ROWS", 5), (members, "_SORTED_ROWS", 9)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(clip_index, "_PASS_ROWS", 11)
    rng, brute = random.Random(seed), Brute()
    clips = random_clips(rng, rng.randrange(1, 60))
    clips[0] = TestClip("web", "page/first")  # at least one is kept
    record = write_table(tmp_path / "clips", clips)
    assert take_in(ledger, record) == len(clips)
    brute.table(record, clips)
    shards = shards_of(clips)
    for version in range(4):
        record = write_dataset(tmp_path / f"dataset{version}", shards)
        take_in(ledger, record)
        brute.dataset(record, shards)
        gone = {c.clip_id for c in clips[1:] if rng.random() < 0.1}
        shards = without(shards, gone)
    for _ in range(10):
        asked = {c.clip_id for c in rng.sample(clips, rng.randrange(1, len(clips) + 1))}
        assert ledger.artifacts_with(asked) == brute.artifacts_with(asked)
    for dataset, rows in brute.datasets.items():
        groups = ledger.groups_of(dataset)
        assert dict(groups) == brute.groups(dataset)
        for one in rng.sample(rows, min(5, len(rows))):
            assert ledger.rank_in_groups(dataset, [SampleGroup(*one.group)], one.sample_id) == brute.rank(
                dataset, {SampleGroup(*one.group)}, one.sample_id
            )
            some = {g for g, _ in groups if rng.random() < 0.6}
            assert ledger.rank_in_groups(dataset, some, one.sample_id) == brute.rank(dataset, some, one.sample_id)
            assert [s.sample_id for s in ledger.samples_of(dataset, [one.clip_id])] == [one.sample_id]


def test_versions_that_share_shards_share_their_rows(ledger: Ledger, tmp_path: Path) -> None:
    clips = [TestClip("web", f"page/{n}") for n in range(20)]
    shards = shards_of(clips)
    assert take_in(ledger, write_dataset(tmp_path / "one", shards)) == 20
    gone = {shards[2][0].clip_id}
    assert take_in(ledger, write_dataset(tmp_path / "two", without(shards, gone))) == 3


def test_clip_tables_that_differ_in_a_clip_share_the_others(ledger: Ledger, tmp_path: Path) -> None:
    clips = [TestClip("web", f"page/{n}") for n in range(50)]
    take_in(ledger, write_table(tmp_path / "one", clips))
    more = TestClip("web", "page/new")
    assert take_in(ledger, write_table(tmp_path / "two", [more, *clips])) < 10
    assert len(ledger.artifacts_with([more.clip_id])) == 1
    assert len(ledger.artifacts_with([clips[0].clip_id])) == 2


def test_indexing_twice_adds_nothing(ledger: Ledger, tmp_path: Path) -> None:
    record = write_dataset(tmp_path / "one", shards_of([TestClip("web", f"page/{n}") for n in range(9)]))
    assert take_in(ledger, record) == 9
    before = contents(ledger)
    assert take_in(ledger, record) == 0
    assert contents(ledger) == before


def test_a_dropped_clip_is_held_but_not_kept(ledger: Ledger, tmp_path: Path) -> None:
    dropped, kept = TestClip("web", "a", kept=False), TestClip("web", "b")
    record = write_table(tmp_path / "clips", [dropped, kept])
    take_in(ledger, record)
    assert ledger.artifacts_with([dropped.clip_id]) == {}
    both = {dropped.clip_id, kept.clip_id}
    assert ledger.artifacts_with(both, dropped=True) == {record.artifact_id: both}


def test_an_artifact_that_was_never_recorded_is_not_named(ledger: Ledger, tmp_path: Path) -> None:
    one = TestClip("web", "a")
    record = write_table(tmp_path / "clips", [one])
    ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
    assert ledger.artifacts_with([one.clip_id]) == {}
    ledger.import_artifact(record)
    assert set(ledger.artifacts_with([one.clip_id])) == {record.artifact_id}


@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_a_killed_indexing_goes_on_and_ends_equal(
    scenario: Scenario, ledger: Ledger, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BATCH_ROWS", 6), ("_READ_ROWS", 6), ("_SORTED_ROWS", 12)):
        monkeypatch.setattr(members, name, value)
    clips = random_clips(random.Random(at), 40)
    records = [write_table(tmp_path / "clips", clips), write_dataset(tmp_path / "dataset", shards_of(clips))]
    for record in records:
        ledger.import_artifact(record)

    def dies() -> None:
        writing, count = clip_index.index_writing, [0]

        def counted(database):  # type: ignore[no-untyped-def]
            count[0] += 1
            if count[0] > at:
                kill_self()
            return writing(database)

        clip_index.index_writing = counted  # type: ignore[assignment]
        for record in records:
            with Ledger.open(scenario.url) as mine:
                count[0] = 0
                mine.index_members(record.artifact_id, record.kind, Storage(record.uri))

    assert wait_child(start_child(dies)) == -9
    kept = {c.clip_id for c in clips if c.kept}
    assert all(held == kept for held in ledger.artifacts_with(kept).values())  # what is not whole is not told
    for record in records:
        ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
    whole = contents(ledger)
    with Ledger.open(str(tmp_path / "other.sqlite")) as fresh:
        for record in records:
            take_in(fresh, record)
        expected = contents(fresh)
    assert whole == expected


def test_two_processes_may_index_the_same_at_once(scenario: Scenario, ledger: Ledger, tmp_path: Path) -> None:
    clips = random_clips(random.Random(3), 60)
    shards = shards_of(clips)
    records = [write_dataset(tmp_path / "a", shards), write_dataset(tmp_path / "b", shards[1:])]
    for record in records:
        ledger.import_artifact(record)

    def index(order: Sequence[ArtifactRecord]) -> None:
        with Ledger.open(scenario.url) as mine:
            for record in order:
                mine.index_members(record.artifact_id, record.kind, Storage(record.uri))

    pids = [start_child(lambda: index(records)), start_child(lambda: index(records[::-1]))]
    assert [wait_child(p) for p in pids] == [0, 0]
    kept = [c.clip_id for c in clips if c.kept]
    assert {a: len(ids) for a, ids in ledger.artifacts_with(kept).items()} == {
        records[0].artifact_id: len(kept), records[1].artifact_id: len(kept) - len(shards[0]),
    }  # fmt: skip
    assert sum(n for _, n in ledger.groups_of(records[0].artifact_id)) == len(kept)


def test_other_writers_go_on_while_a_batch_is_written(postgres_url: str) -> None:
    """On PostgreSQL; SQLite has one writer at a time, and a batch is short."""
    with Ledger.open(postgres_url) as ledger:
        with clip_index.index_writing(ledger._db), Ledger.open(postgres_url) as other:
            other.begin_pipeline_run("demo", {})  # waits for nobody
        assert len(ledger.pipeline_runs()) == 1


def test_an_index_that_names_a_strange_shard_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    record = write_dataset(tmp_path / "one", shards_of([TestClip("web", f"page/{n}") for n in range(9)]))
    (tmp_path / "two" / "shards").mkdir(parents=True)
    (tmp_path / "two" / "index.parquet").write_bytes((tmp_path / "one" / "index.parquet").read_bytes())
    (tmp_path / "two" / "shards" / "000000.tar").write_bytes(b"x")
    other = recorded(tmp_path / "two", ArtifactKind.DATASET)
    assert record.artifact_id != other.artifact_id
    with pytest.raises(DataIntegrityError, match=r"index names a shard that the manifest has not: '000001.tar'"):
        take_in(ledger, other)


def test_unknown_datasets_are_told_with_the_next_step(ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"clip index has no such dataset: 'nope' .*Next: m4v ledger index"):
        ledger.groups_of("nope")


def test_other_kinds_and_artifacts_without_tables_hold_no_clips(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.index_members("0" * 64, ArtifactKind.CHECKPOINT, Storage(str(tmp_path))) == 0
    assert artifact("x").kind == ArtifactKind.DATASET
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_text("nothing else")
    assert take_in(ledger, recorded(tmp_path / "bare", ArtifactKind.DATASET)) == 0


def test_the_index_stays_out_of_the_hash_chain(ledger: Ledger, tmp_path: Path) -> None:
    record = write_table(tmp_path / "clips", [TestClip("web", "a")])
    ledger.import_artifact(record)
    events = ledger.verify_chain().events
    ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
    assert ledger.verify_chain().events == events
    with ledger._db.read() as session:
        assert session.execute(text("SELECT count(*) FROM part_sample")).scalar() == 1
