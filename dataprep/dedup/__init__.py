"""Duplicate clips: equal pictures exactly, near copies by perceptual hashes over several frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig
from dataprep.dedup.fingerprints import Fingerprints, Signature
from dataprep.dedup.near import near_copies

EXACT, NEAR = "duplicate_exact", "duplicate_near"


@dataclass(frozen=True)
class Copies:
    """Rows that are copies, in order; the rule that says so, and the row of the clip that stays."""

    rows: NDArray[np.int64]
    rules: NDArray[np.str_]
    of: NDArray[np.int64]


def find_duplicates(prints: Fingerprints, config: DedupConfig) -> Copies:
    """Copies among the clips. Deterministic: clips are taken in order of preference, then of id, and neither the
    order of the rows nor the number of threads changes anything."""
    of = np.full(len(prints), -1, dtype=np.int64)
    rules = np.full(len(prints), "", dtype="U20")
    if config.exact:
        exact, stays = _equal(prints)
        of[exact], rules[exact] = stays, EXACT
    if config.perceptual:
        near, stays = near_copies(prints, of < 0, config)
        of[near], rules[near] = stays, NEAR
    rows = np.flatnonzero(of >= 0)
    return Copies(rows, rules[rows], of[rows])


def _equal(prints: Fingerprints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows with the pictures of a preferred one, and that one."""
    order = np.lexsort((prints.ranks, prints.contents[:, 1], prints.contents[:, 0]))
    ordered = prints.contents[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    stays = order[first][np.cumsum(first) - 1] if len(order) else order
    return order[~first], stays[~first]


__all__ = ["EXACT", "NEAR", "Copies", "Fingerprints", "Signature", "find_duplicates"]
