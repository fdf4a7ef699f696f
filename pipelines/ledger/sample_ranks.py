"""Where samples of clips stand in datasets: their groups, and how many ids of a group are smaller.

Ranks are summed over the parts of datasets; only parts whose ids lie on both sides of the sample are read.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from pipelines.ledger.database import Database
from pipelines.ledger.schema_clips import (
    ArtifactPart,
    ClipIndex,
    ClipSource,
    PartGroup,
    PartIds,
    PartSample,
    SampleGroup,
)

GroupKey = tuple[str, str, int, int, int]  # source, media, latent t, h, w
_AT_ONCE = 500  # ids a statement
_ID_BYTES = 16


class SamplePlace(NamedTuple):
    """A sample of a clip in a dataset."""

    dataset_id: str
    clip_id: str
    sample_id: str
    group: GroupKey


Ranks = Mapping[str, Mapping[GroupKey, int]]  # dataset -> group -> how many of its sample ids are smaller


class RankOps:
    """The verbs of a Ledger that place samples."""

    _db: Database

    def sample_places(self, clip_ids: Sequence[str]) -> list[SamplePlace]:
        """Every sample of these clips in every indexed dataset, sorted."""
        found: list[SamplePlace] = []
        with self._db.read() as session:
            names = _group_names(session)
            sample, part, index = PartSample, ArtifactPart, ClipIndex
            query = (
                select(index.artifact_id, sample.clip_id, sample.sample_id, sample.group_no)
                .join(part, part.part_no == sample.part_no)
                .join(index, index.artifact_no == part.artifact_no)
                .where(index.kind == "dataset", index.complete)
            )
            for some in _batches(clip_ids):
                for dataset, clip, identity, group in session.execute(query.where(sample.clip_id.in_(some))):
                    if group in names:
                        found.append(SamplePlace(dataset, clip.hex(), identity.hex(), names[group]))
        return sorted(found)

    def sample_ranks(self, sample_id: str) -> Ranks:
        """How many sample ids of each group of each indexed dataset are smaller; a group without any is left out."""
        at = bytes.fromhex(sample_id)
        with self._db.read() as session:
            names = _group_names(session)
            ranks: dict[str, dict[GroupKey, int]] = {}
            for dataset, group, below in session.execute(_whole_parts(at)):
                if group in names and below:
                    ranks.setdefault(dataset, {})[names[group]] = int(below)
            for (dataset, group), below in _cut_parts(session, at).items():
                of_dataset = ranks.setdefault(dataset, {})
                of_dataset[names[group]] = of_dataset.get(names[group], 0) + below
        return ranks


def _batches(ids: Iterable[str]) -> Iterable[list[bytes]]:
    rest = iter(ids)
    while some := [bytes.fromhex(i) for i in itertools.islice(rest, _AT_ONCE)]:
        yield some


def _group_names(session: Session) -> dict[int, GroupKey]:
    group = SampleGroup
    query = select(group.group_no, ClipSource.name, group.media, group.t, group.h, group.w)
    rows = session.execute(query.join(ClipSource, ClipSource.source_no == group.source_no))
    return {number: (source, media, t, h, w) for number, source, media, t, h, w in rows}


def _whole_parts(at: bytes):  # type: ignore[no-untyped-def]
    group, part, index = PartGroup, ArtifactPart, ClipIndex
    below = func.sum(case((group.last < at, group.samples), else_=0))
    return (
        select(index.artifact_id, group.group_no, below)
        .join(part, part.part_no == group.part_no)
        .join(index, index.artifact_no == part.artifact_no)
        .where(group.first < at, index.kind == "dataset", index.complete)
        .group_by(index.artifact_id, group.group_no)
    )


def _cut_parts(session: Session, at: bytes) -> dict[tuple[str, int], int]:
    """What the parts with ids on both sides of `at` add."""
    group = PartGroup
    ids = select(group.part_no, group.group_no, PartIds.ids).join(
        PartIds, (PartIds.part_no == group.part_no) & (PartIds.group_no == group.group_no)
    )
    below = {
        (p, g): _rank(packed, at) for p, g, packed in session.execute(ids.where(group.first < at, group.last >= at))
    }
    added: dict[tuple[str, int], int] = {}
    part, index = ArtifactPart, ClipIndex
    holders = (
        select(index.artifact_id, group.part_no, group.group_no)
        .join(part, part.part_no == group.part_no)
        .join(index, index.artifact_no == part.artifact_no)
        .where(group.first < at, group.last >= at, index.kind == "dataset", index.complete)
    )
    for dataset, part_no, group_no in session.execute(holders):
        added[dataset, group_no] = added.get((dataset, group_no), 0) + below[part_no, group_no]
    return added


def _rank(packed: bytes, at: bytes) -> int:
    count = len(packed) // _ID_BYTES
    return bisect.bisect_left(range(count), at, key=lambda n: packed[n * _ID_BYTES : (n + 1) * _ID_BYTES])
