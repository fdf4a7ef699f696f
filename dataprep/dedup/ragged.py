"""Rows of different lengths laid end to end, in parts of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def laid_out(low: Places, high: Places, most: int) -> Iterator[tuple[Places, Places]]:
    """Every position of the half-open ranges [low[r], high[r]) with its row r, about `most` positions a part.

    A single longer range is cut, so a part never holds more than twice `most`.
    """
    counts = np.asarray(high - low, dtype=np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, most):
        # Global positions begin..end fall into rows first..last.
        end = min(begin + most, total)
        first, last = np.searchsorted(ends, [begin, end - 1], side="right")
        rows = np.arange(first, last + 1)
        skipped = np.zeros(len(rows), dtype=np.int64)
        skipped[0] = begin - (ends[first] - counts[first])
        taken = np.minimum(ends[rows], end) - np.maximum(ends[rows] - counts[rows], begin)
        starts = low[rows] + skipped
        within = np.arange(end - begin) - np.repeat(np.cumsum(taken) - taken, taken)
        yield np.repeat(rows, taken), np.repeat(starts, taken) + within
