"""Which samples of an index an operation keeps, and why the others go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.curation.stored import hashes_of_texts
from dataprep.signals.phash import distance, from_text
from dataprep.versions.config import Condition, Remove, Subset
from m4v.core.errors import InputError

Mask = NDArray[np.bool_]
# Some columns of an index, in its order, in pieces: no operation needs all rows in memory.
Batches = Callable[[Iterable[str]], Iterator[pa.Table]]
REASON = "reason"
REASONS = ("", "clip", "source", "caption", "phash", "overlap")
_SPAN = ("source", "source_id", "start_us", "end_us")
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def subset(batches: Batches, operation: Subset) -> Mask:
    """Rows that stay; raises InputError that lists clips which are not there."""
    clips = _Named("clip_id", "clip ids", operation.clips or ())
    keep = [np.zeros(0, bool)]
    columns = dict.fromkeys([condition.column for condition in operation.where])
    for batch in batches([*columns, *([] if operation.clips is None else [clips.column])]):
        here = np.ones(len(batch), bool) if operation.clips is None else clips.of(batch)
        for condition in operation.where:
            here &= _meets(batch, condition)
        keep.append(here)
    clips.check()
    return np.concatenate(keep)


def remove(batches: Batches, operation: Remove) -> NDArray[np.int8]:
    """For every row the place in `REASONS` of the first reason it goes, 0 for one that stays.

    Raises InputError that lists what was named and is not there: nobody shall think it gone who misspelt it.
    """
    named = {
        1: _Named("clip_id", "clip ids", operation.clips),
        2: _Named("source", "sources", operation.sources),
        3: _Named("caption_digest", "caption digests", operation.caption_digests),
    }
    pictures = _Pictures(operation)
    columns = [n.column for n in named.values() if n.names] + (["phash"] if operation.phashes else [])
    spans = _Spans()
    parts = [np.zeros(0, np.int8)]
    for batch in batches(dict.fromkeys([*columns, *(_SPAN if operation.overlapping else ())])):
        reasons = np.zeros(len(batch), np.int8)
        if operation.phashes:
            reasons[pictures.of(batch["phash"])] = 4
        for reason in sorted((r for r, n in named.items() if n.names), reverse=True):
            mask = named[reason].of(batch)
            reasons[mask] = reason
            if reason == 1 and operation.overlapping:
                spans.add(batch.filter(pa.array(mask)))
        parts.append(reasons)
    for one in named.values():
        one.check()
    pictures.check()
    found = np.concatenate(parts)
    if operation.overlapping and spans.held:
        found[spans.overlapping(batches) & (found == 0)] = REASONS.index("overlap")
    return found


class _Named:
    """Rows by names in one column, and which of the names were seen."""

    def __init__(self, column: str, what: str, names: Sequence[str]) -> None:
        self.column, self.names, self._what = column, names, what
        self._wanted = pa.array(names, pa.string())
        self._seen: set[str] = set()

    def of(self, batch: pa.Table) -> Mask:
        inside = pc.is_in(batch[self.column], value_set=self._wanted)
        self._seen.update(batch[self.column].filter(inside).unique().to_pylist())
        return _mask(inside)

    def check(self) -> None:
        if unknown := sorted(set(self.names) - self._seen):
            raise InputError(
                f"{len(unknown)} of {len(self.names)} {self._what} are not in the dataset", value=unknown,
                next_step="m4v artifacts show ID names its sources; index.parquet has every clip",
            )  # fmt: skip


class _Pictures:
    """Rows by perceptual hashes, and which of the hashes were met."""

    def __init__(self, operation: Remove) -> None:
        self._texts, self._bits = operation.phashes, operation.phash_bits
        words = [from_text(text) for text in operation.phashes]
        wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *words]))
        self._wanted = wanted[wanted != 0]  # 0 stands for a picture without structure, which is like no other
        self._met = np.zeros(len(self._wanted), bool)

    def of(self, texts: pa.ChunkedArray) -> Mask:
        hashes, counts = hashes_of_texts(texts.fill_null("").to_pylist())
        near = np.zeros(len(hashes), bool)
        if self._bits == 0:
            near = np.isin(hashes, self._wanted)
            self._met |= np.isin(self._wanted, hashes)
        else:
            for place, word in enumerate(self._wanted):
                like = (distance(hashes, word) <= self._bits) & (hashes != 0)
                near |= like
                self._met[place] |= like.any()
        mask = np.zeros(len(counts), bool)
        mask[np.repeat(np.arange(len(counts)), counts)[near]] = True
        return mask

    def check(self) -> None:
        if missed := [t for t in self._texts if not self._met[np.isin(self._wanted, from_text(t))].any()]:
            raise InputError(
                f"{len(missed)} of {len(self._texts)} perceptual hashes match nothing in the dataset", value=missed,
                next_step="raise phash_bits, or leave them out",
            )  # fmt: skip


class _Spans:
    """Spans of clips that go, and what overlaps one of them in the same source file."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def add(self, clips: pa.Table) -> None:
        for source, source_id, start, end in _rows(clips):
            self.held.setdefault((source, source_id), []).append((start, end))

    def overlapping(self, batches: Batches) -> Mask:
        files = pa.array(sorted({source_id for _, source_id in self.held}), pa.string())
        parts = [np.zeros(0, bool)]
        for batch in batches(_SPAN):
            here = _mask(pc.is_in(batch["source_id"], value_set=files))
            for place, (source, source_id, start, end) in zip(
                np.flatnonzero(here).tolist(), _rows(batch.filter(pa.array(here))), strict=True
            ):
                here[place] = any(start < e and s < end for s, e in self.held.get((source, source_id), ()))
            parts.append(here)
        return np.concatenate(parts)


def _mask(column: pa.ChunkedArray) -> Mask:
    """A missing value meets no condition."""
    return np.asarray(column.fill_null(False).to_numpy(), bool)


def _meets(table: pa.Table, condition: Condition) -> Mask:
    column, value = table[condition.column], condition.value
    if condition.test in _COMPARE:
        return _mask(_COMPARE[condition.test](column, value))
    if condition.test == "like":
        return _mask(pc.match_substring_regex(column, _glob(str(value))))
    assert isinstance(value, tuple)
    inside = _mask(pc.is_in(column, value_set=pa.array(value, column.type)))
    return inside if condition.test == "in" else ~inside & _mask(pc.is_valid(column))


def _glob(pattern: str) -> str:
    """A glob (`*`, `?`) as a regular expression over the whole text."""
    special = {"*": ".*", "?": "."}
    return "(?s)^" + "".join(special.get(c) or (c if c.isalnum() else f"\\x{{{ord(c):x}}}") for c in pattern) + "$"


def _rows(table: pa.Table) -> zip[tuple[str, str, int, int]]:
    return zip(*(table[name].to_pylist() for name in _SPAN), strict=True)
