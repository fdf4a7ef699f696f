"""The clip index's read side: clips by selector, artifacts by clip, and the place of a sample among its group."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.clip_find import facts_of, find
from pipelines.ledger.clip_index import INDEXED_KINDS
from pipelines.ledger.clip_load import among, chunks, table_of
from pipelines.ledger.database import Database
from pipelines.ledger.statements import among_given, is_sqlite
from pipelines.membership.facts import ClipFacts, SampleGroup, SampleRef
from pipelines.membership.selector import ClipSelector


class Unindexed(NamedTuple):
    """A recorded artifact that is not in the index, or not all of it. `deleted`: its bytes are gone, so it cannot be
    any more."""

    artifact_id: str
    kind: str
    uri: str
    deleted: bool


class HeldClips(NamedTuple):
    """Ids of clips that an artifact keeps, and of those that a clip table merely lists as dropped."""

    kept: set[str]
    dropped: set[str]


class ClipQueryOps:
    """The verbs of a Ledger that ask the clip index. Ids are hex, as everywhere outside its tables."""

    _db: Database

    def find_clips(
        self, selector: ClipSelector, *, missing_ok: bool = False, of_source: int | None = None, hashes: bool = True
    ) -> list[ClipFacts]:
        """Every clip that a term names or that overlaps such a clip, by source, file and time; with `of_source` only so
        many of each whole source, whose clips may be millions. Perceptual hashes are read if `hashes`.

        Raises InputError (with near ids or names) for a term that matches nothing, unless `missing_ok`, and for a
        clip prefix that is not unique.
        """
        try:
            with self._db.read() as session:
                return find(session, selector, missing_ok=missing_ok, of_source=of_source, hashes=hashes)
        except InputError as error:
            if not (waiting := [m for m in self.unindexed() if not m.deleted]):
                raise
            hint = f"m4v ledger index: {len(waiting)} artifacts are not in the clip index yet"
            raise InputError(error.what, value=error.value, where=error.where, next_step=hint) from None

    def unindexed(self) -> list[Unindexed]:
        """Clip tables, datasets and sources whose clips or URLs no search finds, oldest first."""
        with self._db.read() as session:
            rows = session.execute(_unindexed()).all()
        return [Unindexed(i, kind, uri, deletion is not None) for i, kind, uri, deletion in rows]

    def clip_facts(self, clip_ids: Iterable[str]) -> dict[str, ClipFacts]:
        """What is known of clips; unknown ids are left out."""
        with self._db.read() as session:
            return facts_of(session, {bytes.fromhex(c): () for c in clip_ids})

    def holders_of(self, clip_ids: Iterable[str]) -> dict[tuple[str, str], HeldClips]:
        """Clip tables and datasets of the ledger that hold or list any of the clips, by id and kind, and which."""
        found: dict[tuple[str, str], HeldClips] = {}
        with self._db.read() as session:
            query = _holders(is_sqlite(session))
            for ids in chunks(bytes.fromhex(c) for c in dict.fromkeys(clip_ids)):
                for *key, clip, dropped in session.execute(query, {"clips": ids}):
                    held = found.setdefault((key[0], key[1]), HeldClips(set(), set()))
                    (held.dropped if dropped else held.kept).add(clip.hex())
        return found

    def artifacts_with(self, clip_ids: Iterable[str], *, dropped: bool = False) -> dict[str, set[str]]:
        """Clip tables and datasets of the ledger that hold any of the clips, and which.

        A clip table counts for the clips it keeps; with `dropped` also for those it lists as dropped.
        """
        found: dict[str, set[str]] = {}
        for (artifact_id, _), held in self.holders_of(clip_ids).items():
            if clips := held.kept | held.dropped if dropped else held.kept:
                found.setdefault(artifact_id, set()).update(clips)
        return found

    def samples_of(self, dataset_id: str, clip_ids: Iterable[str]) -> list[SampleRef]:
        """The samples that a dataset has of these clips, by clip and sample id; raises InputError for a dataset
        that is not indexed."""
        found: list[SampleRef] = []
        own, sample = tables.ArtifactPart, tables.PartSample
        with self._db.read() as session:
            number = _dataset_no(session, dataset_id)
            groups = _groups(session)
            mine = and_(own.part_no == sample.part_no, own.artifact_no == number)
            query = select(sample.clip_id, sample.sample_id, sample.group_no).join(own, mine)
            for ids in chunks(bytes.fromhex(c) for c in dict.fromkeys(clip_ids)):
                rows = session.execute(query.where(among(session, sample.clip_id, ids)))
                for clip, sample_id, group_no in rows:
                    found.append(SampleRef(clip.hex(), sample_id.hex(), groups[group_no]))
        return sorted(found)

    def groups_of(self, dataset_id: str) -> list[tuple[SampleGroup, int]]:
        """The groups of a dataset's samples and the size of each, sorted; raises InputError for a dataset that is
        not indexed."""
        with self._db.read() as session:
            total = tables.ArtifactGroup
            number = _dataset_no(session, dataset_id)
            rows = session.execute(select(total.group_no, total.samples).where(total.artifact_no == number))
            groups = _groups(session)
            return sorted((groups[group_no], samples) for group_no, samples in rows)

    def rank_in_groups(self, dataset_id: str, groups: Collection[SampleGroup], sample_id: str) -> int:
        """How many samples of a dataset's groups together have a smaller id: the place of a sample in a stream."""
        return self.ranks_in_groups(dataset_id, groups, [sample_id])[0]

    def ranks_in_groups(self, dataset_id: str, groups: Collection[SampleGroup], sample_ids: Sequence[str]) -> list[int]:
        """`rank_in_groups` of several samples in one transaction."""
        with self._db.read() as session:
            number = _dataset_no(session, dataset_id)
            wanted = set(groups)
            numbers = [no for no, group in _groups(session).items() if group in wanted]
            return [_rank(session, number, numbers, bytes.fromhex(sample)) for sample in sample_ids]


@cache
def _unindexed() -> Select[Any]:
    artifact, index = table_of(schema.Artifact), table_of(tables.ClipIndex)
    same = and_(index.c.artifact_id == artifact.c.artifact_id, index.c.kind == artifact.c.kind, index.c.complete)
    return (
        select(artifact.c.artifact_id, artifact.c.kind, artifact.c.uri, artifact.c.deletion)
        .select_from(artifact.outerjoin(index, same))
        .where(artifact.c.kind.in_([str(k) for k in INDEXED_KINDS]), index.c.artifact_no.is_(None))
        .order_by(artifact.c.recorded_at, artifact.c.artifact_id)
    )


@cache
def _holders(sqlite: bool) -> Select[Any]:
    own, index = table_of(tables.ArtifactPart), table_of(tables.ClipIndex)
    sample, artifact = table_of(tables.PartSample), table_of(schema.Artifact)
    return (
        select(index.c.artifact_id, index.c.kind, sample.c.clip_id, sample.c.group_no == tables.DROPPED)
        .select_from(sample)
        .join(own, own.c.part_no == sample.c.part_no)
        .join(index, index.c.artifact_no == own.c.artifact_no)
        .join(artifact, and_(artifact.c.artifact_id == index.c.artifact_id, artifact.c.kind == index.c.kind))
        .where(index.c.complete, among_given(sqlite, sample.c.clip_id, "clips"))
        .distinct()
    )


def _rank(session: Session, artifact_no: int, group_nos: Sequence[int], sample: bytes) -> int:
    """Parts that lie wholly below the sample count in full; only those around it are looked into."""
    own, part, held = tables.ArtifactPart, tables.PartGroup, tables.PartIds
    mine = and_(part.part_no == own.part_no, own.artifact_no == artifact_no)
    of_groups = part.group_no.in_(group_nos)
    below = session.scalar(select(func.sum(part.samples)).join(own, mine).where(of_groups, part.last < sample))
    around = (
        select(held.ids)
        .join(part, and_(part.part_no == held.part_no, part.group_no == held.group_no))
        .join(own, mine)
        .where(of_groups, part.first < sample, part.last >= sample)
    )
    return int(below or 0) + sum(_smaller(ids, sample) for ids in session.scalars(around))


def _smaller(ids: bytes, sample: bytes) -> int:
    return bisect.bisect_left(range(len(ids) // 16), sample, key=lambda n: ids[16 * n : 16 * n + 16])


def _dataset_no(session: Session, dataset_id: str) -> int:
    index = tables.ClipIndex
    query = select(index.artifact_no).where(index.artifact_id == dataset_id, index.kind == str(ArtifactKind.DATASET))
    number = session.scalar(query.where(index.complete))
    if number is None:
        raise InputError(
            "clip index has no such dataset", value=dataset_id, where="ledger", next_step="m4v ledger index"
        )
    return number


def _groups(session: Session) -> dict[int, SampleGroup]:
    group, source = tables.SampleGroup, tables.ClipSource
    query: Any = select(group.group_no, source.name, group.media, group.t, group.h, group.w)
    rows = session.execute(query.join(source, source.source_no == group.source_no))
    return {no: SampleGroup(name, media, t, h, w) for no, name, media, t, h, w in rows}
