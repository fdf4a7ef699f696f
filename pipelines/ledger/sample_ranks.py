"""Where samples of clips stand in datasets: their groups, and how many ids of a group are smaller.

`ClipQueryOps.rank_in_groups` answers for one dataset; this is for all that share parts. A part is ranked once, and
datasets add up their parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipelines.ledger.clip_load import among, unpack_ranges
from pipelines.ledger.database import AS_BYTES, Database
from pipelines.ledger.members import ids_in
from pipelines.ledger.schema_clips import (
    KEPT,
    ClipIndex,
    ClipSource,
    PartGroup,
    PartIds,
    PartSample,
    SampleGroup,
)

GroupKey = tuple[str, str, int, int, int]  # source, media, latent t, h, w
Numbers = NDArray[np.int64]
_AT_ONCE = 4096  # ids a statement
_NO_RUNS: Numbers = np.zeros((0, 2), dtype=np.int64)


class SamplePlace(NamedTuple):
    """A sample of a clip in a dataset."""

    dataset_id: str
    clip_id: str
    sample_id: str
    group: GroupKey


class PartPlace(NamedTuple):
    """A sample of a clip in a part, and so in every dataset that has the part."""

    clip_id: str
    sample_id: str
    group: GroupKey


class PartRanks(NamedTuple):
    """How many ids of a group are smaller than a sample's, part by part; the other parts have none."""

    parts: Numbers
    below: Numbers


class RankOps:
    """The verbs of a Ledger that place samples in many datasets."""

    _db: Database

    def sample_parts(self, clip_ids: Sequence[str]) -> dict[int, list[PartPlace]]:
        """Every sample of these clips, sorted, by the part that holds it."""
        found: dict[int, list[PartPlace]] = {}
        with self._db.read() as session:
            names = _group_names(session)
            sample = PartSample
            query = select(sample.part_no, sample.clip_id, sample.sample_id, sample.group_no)
            query = query.where(sample.group_no > KEPT)
            for some in _batches(clip_ids):
                for part, clip, identity, group in session.execute(query.where(among(session, sample.clip_id, some))):
                    found.setdefault(part, []).append(PartPlace(clip.hex(), identity.hex(), names[group]))
        return {part: sorted(places) for part, places in found.items()}

    def dataset_parts(self, dataset_ids: Iterable[str]) -> dict[str, Numbers]:
        """The parts of each dataset as runs of their numbers; datasets that are not indexed are left out."""
        index = ClipIndex
        with self._db.read() as session:
            query = select(index.artifact_id, index.parts).where(
                index.artifact_id.in_(ids_in(session, dataset_ids)), index.kind == "dataset", index.complete
            )
            return {dataset: unpack_ranges(packed or b"") for dataset, packed in session.execute(query)}

    def group_names(self) -> dict[int, GroupKey]:
        """What groups are called, by number."""
        with self._db.read() as session:
            return _group_names(session)

    def part_ranks(
        self, sample_id: str, groups: Sequence[GroupKey], names: Mapping[int, GroupKey]
    ) -> dict[GroupKey, PartRanks]:
        """The rank of a sample among each group's ids, in every part of the index; `names` as `group_names` says."""
        at, wanted = bytes.fromhex(sample_id), set(groups)
        found: dict[GroupKey, tuple[list[Numbers], list[Numbers]]] = {group: ([], []) for group in groups}
        numbers = [number for number, name in names.items() if name in wanted]
        with self._db.read() as session:
            group = PartGroup
            whole = (
                select(group.group_no, _joined(session, group.part_no), _joined(session, group.samples))
                .where(among(session, group.group_no, numbers), group.last < at)
                .group_by(group.group_no)
            )
            below = [(names[n], _split(parts), _split(samples)) for n, parts, samples in session.execute(whole)]
            for n, parts, sizes, ids in _cut(session, numbers, at):
                below.append((names[n], parts, _smaller(ids, sizes, at)))
        for name, parts, counts in below:
            found[name][0].append(parts)
            found[name][1].append(counts)
        none = np.zeros(0, dtype=np.int64)
        return {key: PartRanks(np.concatenate([none, *p]), np.concatenate([none, *b])) for key, (p, b) in found.items()}


class SampleRanks:
    """Ranks of samples in some datasets. What it has read of the ledger does not change."""

    def __init__(self, ledger: RankOps, dataset_ids: Iterable[str]) -> None:
        self._ledger = ledger
        self._parts = ledger.dataset_parts(dataset_ids)
        self._place = {name: place for place, name in enumerate(self._parts)}
        self._runs = np.concatenate([_NO_RUNS, *self._parts.values()])
        self._ends = np.append(0, np.cumsum([len(runs) for runs in self._parts.values()])).astype(np.int64)
        self._names: dict[int, GroupKey] = {}
        self._of_group: dict[tuple[str, GroupKey], PartRanks] = {}
        self._ranks: dict[tuple[str, tuple[GroupKey, ...]], list[int]] = {}

    def parts(self, dataset_id: str, of: Numbers) -> list[int]:
        """Those of some parts, ascending, that a dataset has."""
        runs = self._parts.get(dataset_id, _NO_RUNS)
        run = np.searchsorted(runs[:, 0], of, side="right") - 1
        inside = run >= 0
        inside[inside] = of[inside] <= runs[run[inside], 1]
        found: list[int] = of[inside].tolist()
        return found

    def rank(self, place: SamplePlace, groups: Sequence[GroupKey]) -> int:
        """How many sample ids of these groups together are smaller, in the dataset of the sample."""
        asked = place.sample_id, tuple(groups)
        if asked not in self._ranks:
            self._ranks[asked] = self._summed(*asked)
        return self._ranks[asked][self._place[place.dataset_id]]

    def _summed(self, sample_id: str, groups: Sequence[GroupKey]) -> list[int]:
        """The rank in every dataset: each adds up its runs of parts."""
        missing = [group for group in groups if (sample_id, group) not in self._of_group]
        if missing:
            self._names = self._names or self._ledger.group_names()
            found = self._ledger.part_ranks(sample_id, missing, self._names)
            self._of_group |= {(sample_id, group): ranks for group, ranks in found.items()}
        of_groups = [self._of_group[sample_id, group] for group in groups]
        last = max(int(numbers.max(initial=0)) for numbers in (self._runs, *(r.parts for r in of_groups)))
        below = np.zeros(last + 1, dtype=np.int64)
        for ranks in of_groups:
            below[ranks.parts] += ranks.below  # a group has one row a part
        until = np.append(0, np.cumsum(below))
        by_run = np.append(0, np.cumsum(until[self._runs[:, 1] + 1] - until[self._runs[:, 0]]))
        ranked: list[int] = np.diff(by_run[self._ends]).tolist()
        return ranked


def _batches(ids: Iterable[str]) -> Iterable[list[bytes]]:
    rest = iter(ids)
    while some := [bytes.fromhex(i) for i in itertools.islice(rest, _AT_ONCE)]:
        yield some


def _group_names(session: Session) -> dict[int, GroupKey]:
    group = SampleGroup
    query = select(group.group_no, ClipSource.name, group.media, group.t, group.h, group.w)
    rows = session.execute(query.join(ClipSource, ClipSource.source_no == group.source_no))
    return {number: (source, media, t, h, w) for number, source, media, t, h, w in rows}


def _joined(session: Session, column: InstrumentedAttribute[int]) -> Any:
    # One text of thousands of numbers: as rows they take far longer to fetch than to find.
    if session.get_bind().dialect.name == "sqlite":
        return func.group_concat(column)
    return func.string_agg(cast(column, String), ",")


def _split(numbers: str) -> Numbers:
    return np.fromstring(numbers, dtype=np.int64, sep=",")


def _cut(session: Session, groups: Sequence[int], at: bytes) -> Iterator[tuple[int, Numbers, Numbers, bytes]]:
    """Of each group the parts that have ids below `at` and others: their numbers, ids of each, and those ids."""
    group, held = PartGroup, PartIds
    query = (
        select(group.group_no)
        .join(held, (held.part_no == group.part_no) & (held.group_no == group.group_no))
        .where(among(session, group.group_no, groups), group.first < at, group.last >= at)
    )
    if session.get_bind().dialect.name != "sqlite":
        columns = (_joined(session, group.part_no), _joined(session, group.samples), func.string_agg(held.ids, b""))
        rows = session.execute(query.add_columns(*columns).group_by(group.group_no), execution_options=AS_BYTES)
        yield from ((number, _split(parts), _split(sizes), ids) for number, parts, sizes, ids in rows)
        return
    # SQLite has no aggregate that joins bytes.
    of_group: dict[int, list[tuple[int, int, bytes]]] = {}
    for number, *row in session.execute(query.add_columns(group.part_no, group.samples, held.ids)):
        of_group.setdefault(number, []).append((row[0], row[1], row[2]))
    for number, cut in of_group.items():
        parts, sizes, ids = zip(*cut, strict=True)
        yield number, np.array(parts), np.array(sizes), b"".join(ids)


def _smaller(ids: bytes, sizes: Numbers, at: bytes) -> Numbers:
    """How many ids of 16 bytes are below `at`, of each of some sets that lie one after the other."""
    first, second = np.frombuffer(ids, dtype=">u8").reshape(-1, 2).T
    here = np.frombuffer(at, dtype=">u8")
    below = (first < here[0]) | ((first == here[0]) & (second < here[1]))
    smaller: Numbers = np.diff(np.append(0, np.cumsum(below))[np.append(0, np.cumsum(sizes))])
    return smaller
