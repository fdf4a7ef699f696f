"""Where samples of clips stand in datasets: their groups, and how many ids of a group are smaller.

`ClipQueryOps.rank_in_groups` answers for one dataset; this is for all that share parts. A part is ranked once, and
datasets add up their parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import LargeBinary, Select, bindparam, func, select
from sqlalchemy.orm import Session

from pipelines.ledger.clip_load import table_of, unpack_ranges
from pipelines.ledger.database import AS_BYTES, Database
from pipelines.ledger.schema_clips import (
    KEPT,
    ClipIndex,
    ClipSource,
    PartGroup,
    PartIds,
    PartSample,
    SampleGroup,
)
from pipelines.ledger.statements import among_given, as_ids, ids_given, is_sqlite, joined

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

    def sample_parts(
        self, clip_ids: Sequence[str], names: Mapping[int, GroupKey] | None = None
    ) -> dict[int, list[PartPlace]]:
        """Every sample of these clips, sorted, by the part that holds it; `names` as `group_names` says."""
        found: dict[int, list[PartPlace]] = {}
        with self._db.read() as session:
            names = _group_names(session) if names is None else names
            query = _samples(is_sqlite(session))
            for some in _batches(clip_ids):
                for part, clip, identity, group in session.execute(query, {"clips": some}):
                    found.setdefault(part, []).append(PartPlace(clip.hex(), identity.hex(), names[group]))
        return {part: sorted(places) for part, places in found.items()}

    def dataset_parts(self, dataset_ids: Iterable[str]) -> dict[str, Numbers]:
        """The parts of each dataset as runs of their numbers; datasets that are not indexed are left out."""
        with self._db.read() as session:
            rows = session.execute(_parts(is_sqlite(session)), {"ids": as_ids(dataset_ids)}, execution_options=AS_BYTES)
            return {dataset: unpack_ranges(packed or b"") for dataset, packed in rows.all()}

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
            ranked = _ranked_here(session, numbers, at) if is_sqlite(session) else _ranked(session, numbers, at)
            below = [(names[n], parts, counts) for n, parts, counts in ranked]
        for name, parts, counts in below:
            found[name][0].append(parts)
            found[name][1].append(counts)
        none = np.zeros(0, dtype=np.int64)
        return {key: PartRanks(np.concatenate([none, *p]), np.concatenate([none, *b])) for key, (p, b) in found.items()}


class SampleRanks:
    """Ranks of samples in some datasets. What it has read of the ledger does not change."""

    def __init__(
        self, ledger: RankOps, dataset_ids: Iterable[str], names: Mapping[int, GroupKey] | None = None
    ) -> None:
        """`names` as `RankOps.group_names` says."""
        self._ledger, self._names = ledger, names
        self._parts = ledger.dataset_parts(dataset_ids)
        self._place = {name: place for place, name in enumerate(self._parts)}
        self._runs = np.concatenate([_NO_RUNS, *self._parts.values()])
        self._ends = np.append(0, np.cumsum([len(runs) for runs in self._parts.values()])).astype(np.int64)
        self._expected: dict[str, set[GroupKey]] = {}
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

    def expect(self, sample_id: str, groups: Iterable[GroupKey]) -> None:
        """That `rank` may be asked of these groups: the first question that reads then reads them all."""
        self._expected.setdefault(sample_id, set()).update(groups)

    def rank(self, place: SamplePlace, groups: Sequence[GroupKey]) -> int:
        """How many sample ids of these groups together are smaller, in the dataset of the sample."""
        asked = place.sample_id, tuple(groups)
        if asked not in self._ranks:
            self._ranks[asked] = self._summed(*asked)
        return self._ranks[asked][self._place[place.dataset_id]]

    def _summed(self, sample_id: str, groups: Sequence[GroupKey]) -> list[int]:
        """The rank in every dataset: each adds up its runs of parts."""
        if any((sample_id, group) not in self._of_group for group in groups):
            self._names = self._ledger.group_names() if self._names is None else self._names
            wanted = {*groups, *self._expected.pop(sample_id, ())}
            missing = sorted(group for group in wanted if (sample_id, group) not in self._of_group)
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


_group, _source = table_of(SampleGroup).c, table_of(ClipSource).c
_NAMES = select(_group.group_no, _source.name, _group.media, _group.t, _group.h, _group.w).where(
    _source.source_no == _group.source_no
)


def _group_names(session: Session) -> dict[int, GroupKey]:
    return {number: (source, media, t, h, w) for number, source, media, t, h, w in session.execute(_NAMES).all()}


@cache
def _samples(sqlite: bool) -> Select[Any]:
    sample = table_of(PartSample).c
    wanted = among_given(sqlite, sample.clip_id, "clips")
    return select(sample.part_no, sample.clip_id, sample.sample_id, sample.group_no).where(
        sample.group_no > KEPT, wanted
    )


@cache
def _parts(sqlite: bool) -> Select[Any]:
    index = table_of(ClipIndex).c
    wanted = ids_given(sqlite, index.artifact_id, "ids")
    return select(index.artifact_id, index.parts).where(wanted, index.kind == "dataset", index.complete)


# The parts of some groups that have ids below a sample's, and how many. Numbers of thousands of parts come as one value
# a group: as rows they take far longer to fetch than to find.
Ranked = Iterator[tuple[int, Numbers, Numbers]]
_part, _held = table_of(PartGroup).c, table_of(PartIds).c
_AT = bindparam("at", type_=LargeBinary)
_WHOLE, _CUT = _part.last < _AT, _part.last >= _AT  # parts whose ids are all below, parts that have others


def _ranked(session: Session, groups: Sequence[int], at: bytes) -> Ranked:
    rows = session.execute(_packed(), {"groups": list(groups), "at": at}, execution_options=AS_BYTES)
    for number, *packed, ids in rows:
        parts, samples, cut, sizes = (np.frombuffer(p or b"", dtype=">i4").astype(np.int64) for p in packed)
        yield number, parts, samples
        if ids:
            yield number, cut, _smaller(ids, sizes, at)


@cache
def _packed() -> Select[Any]:
    """For PostgreSQL, numbers in four bytes each. Ids are looked up by key: a join would read those of all parts."""
    ids = select(_held.ids).where(_held.part_no == _part.part_no, _held.group_no == _part.group_no).scalar_subquery()

    def strung(value: Any, which: Any) -> Any:
        return func.string_agg(value, bindparam("none", b"", LargeBinary), type_=LargeBinary()).filter(which)

    numbers = (func.int4send(_part.part_no), func.int4send(_part.samples))
    return (
        select(_part.group_no, *(strung(n, which) for which in (_WHOLE, _CUT) for n in numbers), strung(ids, _CUT))
        .where(among_given(False, _part.group_no, "groups"), _part.first < _AT)
        .group_by(_part.group_no)
    )


_IN_GROUPS = among_given(True, _part.group_no, "groups")
_WHOLE_HERE = (
    select(_part.group_no, joined(True, _part.part_no), joined(True, _part.samples))
    .where(_IN_GROUPS, _WHOLE)
    .group_by(_part.group_no)
)
_CUT_HERE = (
    select(_part.group_no, _part.part_no, _part.samples, _held.ids)
    .where(_held.part_no == _part.part_no, _held.group_no == _part.group_no)
    .where(_IN_GROUPS, _part.first < _AT, _CUT)
)


def _ranked_here(session: Session, groups: Sequence[int], at: bytes) -> Ranked:
    """SQLite has no aggregate that joins bytes."""
    asked = {"groups": list(groups), "at": at}
    for number, *texts in session.execute(_WHOLE_HERE, asked):
        parts, samples = (np.fromstring(text, dtype=np.int64, sep=",") for text in texts)
        yield number, parts, samples
    of_group: dict[int, list[tuple[int, int, bytes]]] = {}
    for number, *row in session.execute(_CUT_HERE, asked):
        of_group.setdefault(number, []).append((row[0], row[1], row[2]))
    for number, cut in of_group.items():
        numbers, sizes, ids = zip(*cut, strict=True)
        yield number, np.array(numbers), _smaller(b"".join(ids), np.array(sizes), at)


def _smaller(ids: bytes, sizes: Numbers, at: bytes) -> Numbers:
    """How many ids of 16 bytes are below `at`, of each of some sets that lie one after the other."""
    first, second = np.frombuffer(ids, dtype=">u8").reshape(-1, 2).T
    here = np.frombuffer(at, dtype=">u8")
    below = (first < here[0]) | ((first == here[0]) & (second < here[1]))
    smaller: Numbers = np.diff(np.append(0, np.cumsum(below))[np.append(0, np.cumsum(sizes))])
    return smaller
