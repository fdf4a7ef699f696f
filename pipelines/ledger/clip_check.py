"""Whether the clip index is whole: every recorded artifact is in it, and its tables agree with each other."""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import schema_clips as tables
from pipelines.ledger.database import Database


class IndexedCount(NamedTuple):
    """How many rows of its own table or index an artifact had when it was indexed; of a source, its URLs."""

    artifact_id: str
    kind: str
    members: int


class ClipCheckOps:
    """The verbs of a Ledger that check the clip index."""

    _db: Database

    def indexed_counts(self) -> list[IndexedCount]:
        """Every artifact that is in the index, to be held against its bytes."""
        index = tables.ClipIndex
        query = select(index.artifact_id, index.kind, index.members).where(index.complete).order_by(index.artifact_no)
        with self._db.read() as session:
            return [IndexedCount(*row) for row in session.execute(query)]

    def check_clip_index(self) -> list[str]:
        """What is wrong with the index's own tables; reads all of them, about a million rows a second."""
        with self._db.read() as session:
            return [*_artifacts(session), *_parts(session), *_groups(session), *_clips(session)]


def _artifacts(session: Session) -> Iterator[str]:
    """The parts of an artifact have as many rows as it had."""
    index, own, part = tables.ClipIndex, tables.ArtifactPart, tables.ClipPart
    query: Any = (
        select(index.kind, index.artifact_id, index.members, func.coalesce(func.sum(part.members), 0))
        .outerjoin(own, own.artifact_no == index.artifact_no)
        .outerjoin(part, and_(part.part_no == own.part_no, part.complete))
        .where(index.complete, index.kind != str(ArtifactKind.SOURCE))
        .group_by(index.artifact_no, index.kind, index.artifact_id, index.members)
    )
    for kind, artifact_id, members, held in session.execute(query):
        if members != held:
            yield f"{kind} {artifact_id[:12]}: {held} rows in its parts, {members} in its own table"


def _parts(session: Session) -> Iterator[str]:
    """A part that may be relied on has all its rows."""
    part, held = tables.ClipPart, _rows_by_part(session)
    for number, members in session.execute(select(part.part_no, part.members).where(part.complete)):
        if held.get(number, 0) != members:
            yield f"part {number}: {held.get(number, 0)} rows, it had {members}"


def _rows_by_part(session: Session) -> Counter[int]:
    raw = session.connection().connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        sample = tables.PartSample
        grouped = select(sample.part_no, func.count()).group_by(sample.part_no)
        return Counter(dict(session.execute(grouped).tuples().all()))
    held: Counter[int] = Counter()  # SQLite would sort all rows in memory
    cursor = raw.execute("SELECT part_no FROM part_sample")
    while rows := cursor.fetchmany(65_536):
        held.update(itertools.chain.from_iterable(rows))
    return held


def _groups(session: Session) -> Iterator[str]:
    """Ranks are counted from the same samples: by part, and by dataset."""
    part, group, ids, own = tables.ClipPart, tables.PartGroup, tables.PartIds, tables.ArtifactPart
    datasets = select(own.part_no).join(
        tables.ClipIndex,
        and_(tables.ClipIndex.artifact_no == own.artifact_no, tables.ClipIndex.kind == str(ArtifactKind.DATASET)),
    )
    counted = (
        select(part.part_no, part.members, func.coalesce(func.sum(group.samples), 0))
        .outerjoin(group, group.part_no == part.part_no)
        .where(part.complete, part.part_no.in_(datasets))
        .group_by(part.part_no, part.members)
    )
    for number, members, samples in session.execute(counted):
        if members != samples:
            yield f"part {number}: {samples} samples in groups, {members} in all"
    packed = select(group.part_no, group.group_no).outerjoin(
        ids, and_(ids.part_no == group.part_no, ids.group_no == group.group_no)
    )
    wrong = packed.where(func.coalesce(func.length(ids.ids), 0) != 16 * group.samples)
    for number, group_no in session.execute(wrong):
        yield f"part {number}: ids of group {group_no} are not as many as its samples"
    total = tables.ArtifactGroup
    sums = (
        select(own.artifact_no, group.group_no, func.sum(group.samples).label("samples"))
        .join(group, group.part_no == own.part_no)
        .group_by(own.artifact_no, group.group_no)
        .subquery()
    )
    same = and_(total.artifact_no == sums.c.artifact_no, total.group_no == sums.c.group_no)
    differs = select(total.artifact_no).outerjoin(sums, same).where(func.coalesce(sums.c.samples, 0) != total.samples)
    for (number,) in session.execute(differs.distinct()):
        yield f"dataset number {number}: its groups do not add up to those of its parts"


def _clips(session: Session) -> Iterator[str]:
    """Whatever is held can be found, by hash too."""
    sample, clip, block = tables.PartSample, tables.Clip, tables.HashBlock
    lost = select(func.count()).where(~select(clip.clip_id).where(clip.clip_id == sample.clip_id).exists())
    if unknown := session.scalar(lost.select_from(sample)):
        yield f"{unknown} rows are of clips that no search finds"
    hashed = session.scalar(select(func.coalesce(func.sum(func.length(block.counts)), 0)))
    if (clips := session.scalar(select(func.count()).select_from(clip))) != hashed:
        yield f"{hashed} clips have perceptual hashes, {clips} are indexed"
