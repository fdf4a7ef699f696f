"""Which samples of a table an operation keeps, and why the others go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprep.signals.phash import distance, from_text
from dataprep.versions.config import Condition, Merge, Remove, Subset
from m4v.core.errors import InputError

Mask = NDArray[np.bool_]
REASON = "reason"
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def columns_of(operation: Merge | Subset | Remove) -> list[str]:
    """Index columns that an operation looks at."""
    if isinstance(operation, Subset):
        return [condition.column for condition in operation.where]
    if isinstance(operation, Remove):
        asked = (("caption_digest", operation.caption_digests), ("phash", operation.phashes))
        return [column for column, names in asked if names]
    return []


def subset(table: pa.Table, operation: Subset) -> Mask:
    """Rows that stay; raises InputError that lists clips which are not there."""
    keep = np.ones(len(table), bool)
    for condition in operation.where:
        keep &= _meets(table, condition)
    if operation.clips is not None:
        keep &= _named(table, "clip_id", operation.clips, "clip ids")
    return keep


def remove(table: pa.Table, operation: Remove) -> pa.Array:
    """For every row the first reason it goes, null for one that stays.

    Raises InputError that lists what was named and is not there: nobody shall think it gone who misspelt it.
    """
    reasons = np.full(len(table), None, object)
    clips = _named(table, "clip_id", operation.clips, "clip ids")
    found = [
        ("clip", clips),
        ("source", _named(table, "source", operation.sources, "sources")),
    ]
    if operation.caption_digests:
        found.append(("caption", _named(table, "caption_digest", operation.caption_digests, "caption digests")))
    if operation.phashes:
        found.append(("phash", _looks_like(table, operation)))
    if operation.overlapping and clips.any():
        found.append(("overlap", _overlapping(table, clips)))
    for reason, mask in reversed(found):
        reasons[mask] = reason
    return pa.array(reasons, pa.string())


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


def _named(table: pa.Table, column: str, names: Sequence[str], what: str) -> Mask:
    wanted = pa.array(names, pa.string())
    unknown = sorted(set(pc.filter(wanted, pc.invert(pc.is_in(wanted, value_set=table[column]))).to_pylist()))
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(names)} {what} are not in the dataset", value=unknown,
            next_step="m4v artifacts show ID names its sources; index.parquet has every clip",
        )  # fmt: skip
    return _mask(pc.is_in(table[column], value_set=wanted))


def _looks_like(table: pa.Table, operation: Remove) -> Mask:
    keep = np.zeros(len(table), bool)
    wanted = np.concatenate([from_text(text) for text in operation.phashes])
    wanted = np.unique(wanted[wanted != 0])  # 0 stands for a picture without structure, which is like no other
    met = np.zeros(len(wanted), bool)
    for place, text in enumerate(table["phash"].to_pylist()):
        hashes = from_text(text or "")
        if len(hashes := hashes[hashes != 0]):
            near = distance(hashes[:, None], wanted[None, :]) <= operation.phash_bits
            keep[place] = near.any()
            met |= near.any(axis=0)
    if missed := [t for t in operation.phashes if not met[np.isin(wanted, from_text(t))].any()]:
        raise InputError(
            f"{len(missed)} of {len(operation.phashes)} perceptual hashes match nothing in the dataset", value=missed,
            next_step="raise phash_bits, or leave them out",
        )  # fmt: skip
    return keep


def _overlapping(table: pa.Table, clips: Mask) -> Mask:
    """Rows whose span overlaps one of the marked rows' in the same source file."""
    columns = ("source", "source_id", "start_us", "end_us")
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for source, source_id, start, end in _rows(table.filter(pa.array(clips)), columns):
        spans.setdefault((source, source_id), []).append((start, end))
    keep = np.zeros(len(table), bool)
    for place, (source, source_id, start, end) in enumerate(_rows(table, columns)):
        keep[place] = any(start < e and s < end for s, e in spans.get((source, source_id), ()))
    return keep


def _rows(table: pa.Table, columns: Sequence[str]) -> zip[tuple[str, str, int, int]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)
