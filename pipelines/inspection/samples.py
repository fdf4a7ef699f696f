"""A capped sample of a clip table that shows every rule and every source, and its rows read with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.inspection.clip_table import ClipTable, Labels

Row = dict[str, Any]


def spread_sample(table: ClipTable, wanted: int, then: Labels | None = None) -> NDArray[np.int64]:
    """Places of at most `wanted` clips, in the order of the table.

    Groups of one fate and source take turns, so that a rule that dropped three clips shows them beside a million
    kept ones; within a group the places are spread evenly. `then`: fates of a what-if, which part groups further.
    """
    groups = _groups(table, then)
    shares = _share_out([len(g) for g in groups], wanted)
    chosen = [g[np.arange(n) * len(g) // n] for g, n in zip(groups, shares, strict=True) if n]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def group_counts(table: ClipTable, then: Labels | None = None) -> list[tuple[str, str, int, str]]:
    """(fate, source, clips, fate then), of the whole table."""
    then = table.fates if then is None else then
    return [(table.fates[g[0]], table.sources[g[0]], len(g), then[g[0]]) for g in _groups(table, then)]


def _groups(table: ClipTable, then: Labels | None) -> list[NDArray[np.int64]]:
    """Places of the clips of each fate and source, in order."""
    key = table.fates.codes * len(table.sources.names) + table.sources.codes
    if then is not None:
        key = key * len(then.names) + then.codes
    order = np.argsort(key, kind="stable")
    bounds = np.flatnonzero(np.diff(key[order])) + 1
    return [g for g in np.split(order, bounds) if len(g)]


def _share_out(sizes: Sequence[int], wanted: int) -> list[int]:
    """How many each group gives: equal shares, what small groups leave over going to the larger ones."""
    shares = [0] * len(sizes)
    left = min(wanted, sum(sizes))
    while left:
        open_ = [k for k, size in enumerate(sizes) if shares[k] < size]
        each = max(1, left // len(open_))
        for k in open_:
            more = min(each, sizes[k] - shares[k], left)
            shares[k] += more
            left -= more
    return shares


def rows_at(path: Path, places: NDArray[np.int64], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet file at rising `places`, one row group in memory at a time; columns it lacks are left out."""
    file = pq.ParquetFile(path, pre_buffer=False)
    names = [c for c in columns if c in file.schema_arrow.names]
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        inside = places[(places >= start) & (places < start + count)] - start
        if len(inside):
            yield from file.read_row_group(group, columns=names).take(pa.array(inside)).to_pylist()
        start += count
