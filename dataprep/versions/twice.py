"""What a merge brings together that training would meet twice: clips that overlap in time, clips at several sizes.

Ten million rows are held as 64-bit keys; only rows with suspicious keys are read by their names, a million at once.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.versions.parents import Mask, Parent

EXAMPLES = 10
_AT_ONCE = 1 << 20  # suspicious rows read together
_SPAN = ("source", "source_id", "start_us", "end_us", "clip_id")
_log = logging.getLogger(__name__)

Keys = NDArray[np.uint64]


class Overlap(NamedTuple):
    """Two clips of one source file that share time."""

    source: str
    source_id: str
    first: str
    second: str


@dataclass
class Found:
    """How many there are, and the first of them in their order."""

    count: int = 0
    first: list[Any] = field(default_factory=list)

    def add(self, found: Sequence[Any]) -> None:
        self.count += len(found)
        self.first = heapq.nsmallest(EXAMPLES, [*self.first, *found])

    def warn(self, what: str) -> dict[str, object]:
        """Log a warning if there are any; returns what stands in the version's facts."""
        if self.count:
            _log.warning("%d %s, e.g. %s", self.count, what, self.first[0])
        return {
            "count": self.count,
            "examples": [list(one) if isinstance(one, tuple) else one for one in self.first],
        }


def overlaps(parents: Sequence[Parent], kept: Sequence[Mask]) -> Found:
    """Clips of one source file whose spans overlap, each with the one it runs into; images have no span."""
    keys: Keys = np.empty(_length(kept), np.uint64)
    start, end = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    done = 0
    for rows in _rows(parents, kept, _SPAN[:-1]):
        here = slice(done, done := done + len(rows))
        keys[here] = _keys(pc.binary_join_element_wise(rows["source"], rows["source_id"], "\0"))
        start[here], end[here] = rows["start_us"].to_numpy(), rows["end_us"].to_numpy()
    order = np.flatnonzero(end > start)  # of videos
    order = order[np.lexsort((start[order], keys[order]))]
    # A file has two spans that overlap only if it has two neighbours that do.
    ordered = keys[order]
    runs_into = (ordered[1:] == ordered[:-1]) & (start[order[1:]] < end[order[:-1]])
    suspects = np.unique(ordered[1:][runs_into])
    del start, end, order, ordered, runs_into
    found = Found()
    for rows in _named(parents, kept, _SPAN, keys, suspects):
        found.add(_overlaps(rows))
    return found


def repeated_clips(parents: Sequence[Parent], kept: Sequence[Mask]) -> Found:
    """Clips with more than one sample (encoded at several sizes)."""
    keys: Keys = np.empty(_length(kept), np.uint64)
    done = 0
    for rows in _rows(parents, kept, ("clip_id",)):
        keys[done : (done := done + len(rows))] = _keys(rows["clip_id"])
    ordered = np.sort(keys)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    found = Found()
    for rows in _named(parents, kept, ("clip_id",), keys, suspects):
        counts = rows.group_by("clip_id", use_threads=False).aggregate([([], "count_all")])
        found.add(counts.filter(pc.greater(counts["count_all"], 1))["clip_id"].to_pylist())
    return found


def _overlaps(table: pa.Table) -> list[Overlap]:
    """Of whole files."""
    videos = table.select(_SPAN).filter(pc.greater(table["end_us"], table["start_us"]))
    ordered = videos.sort_by([(name, "ascending") for name in _SPAN])
    found: set[Overlap] = set()
    file, reaches, longest = None, 0, ""
    for batch in ordered.to_batches(max_chunksize=65_536):
        for source, source_id, start, end, clip in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            if (source, source_id) != file:
                file, reaches, longest = (source, source_id), 0, ""
            if start < reaches and clip != longest:
                found.add(Overlap(source, source_id, longest, clip))
            if end > reaches:
                reaches, longest = end, clip
    return sorted(found)


def _rows(parents: Sequence[Parent], kept: Sequence[Mask], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of the rows that stay, in their order."""
    for parent, mask in zip(parents, kept, strict=True):
        start = 0
        for batch in parent.batches(columns):
            yield batch.filter(pa.array(mask[start : start + len(batch)]))
            start += len(batch)


def _named(
    parents: Sequence[Parent], kept: Sequence[Mask], columns: Sequence[str], keys: Keys, suspects: Keys
) -> Iterator[pa.Table]:
    """Columns of the rows whose key is among the suspects (ascending), about a million at once and all of a key
    together. `keys` are of every row that stays."""
    if not len(suspects):
        return
    place = np.searchsorted(suspects, keys).astype(np.int32)
    np.minimum(place, len(suspects) - 1, out=place)
    place[suspects[place] != keys] = -1
    turn = (np.cumsum(np.bincount(place[place >= 0], minlength=len(suspects))) - 1) // _AT_ONCE
    for number in np.unique(turn).tolist():
        first, last = np.searchsorted(turn, [number, number + 1])
        asked = (place >= first) & (place < last)
        parts, start = [], 0
        for rows in _rows(parents, kept, columns):
            parts.append(rows.filter(pa.array(asked[start : start + len(rows)])))
            start += len(rows)
        yield pa.concat_tables(parts)


def _length(kept: Sequence[Mask]) -> int:
    return sum(int(np.count_nonzero(mask)) for mask in kept)


def _keys(names: pa.ChunkedArray) -> Keys:
    """64 bits of each name: rows that share them may have one name, all others have not."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
