"""Duplicate clips: equal pictures, near copies by perceptual hashes of several frames, clips that show the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig
from dataprep.dedup.fingerprints import Fingerprints, Signature
from dataprep.dedup.near import near_copies
from dataprep.dedup.semantic import semantic_copies
from m4v.core.errors import ConfigError

EXACT, NEAR, SEMANTIC = "duplicate_exact", "duplicate_near", "duplicate_semantic"
_RULES = ("", EXACT, NEAR, SEMANTIC)


@dataclass(frozen=True)
class Copies:
    """Rows that are copies, in order; the rule that says so, and the row of the clip that stays."""

    rows: NDArray[np.int64]
    rules: NDArray[np.str_]
    of: NDArray[np.int64]


def find_duplicates(prints: Fingerprints, config: DedupConfig) -> Copies:
    """Copies among the clips. Deterministic: clips are taken in order of preference, then of id, and neither the
    order of the rows nor the number of threads changes anything. Raises ConfigError when embeddings are needed and
    were not measured."""
    of = np.full(len(prints), -1, dtype=np.int64)
    rules = np.zeros(len(prints), dtype=np.int8)  # places in _RULES
    if config.exact:
        exact, stays = _equal(prints)
        of[exact], rules[exact] = stays, _RULES.index(EXACT)
    if config.perceptual:
        near, stays = near_copies(prints, of < 0, config)
        of[near], rules[near] = stays, _RULES.index(NEAR)
    if config.semantic:
        alike, stays = _alike(prints, (of < 0) & prints.perceptual, config)
        of[alike], rules[alike] = stays, _RULES.index(SEMANTIC)
    rows = np.flatnonzero(of >= 0)
    return Copies(rows, np.array(_RULES)[rules[rows]], of[rows])


def _equal(prints: Fingerprints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows with the pictures of a preferred one, and that one."""
    order = np.lexsort((prints.ranks, prints.contents[:, 1], prints.contents[:, 0]))
    ordered = prints.contents[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    stays = order[first][np.cumsum(first) - 1] if len(order) else order
    return order[~first], stays[~first]


def _alike(
    prints: Fingerprints, remaining: NDArray[np.bool_], config: DedupConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Among videos and among images apart: a still is no copy of the film that shows the same."""
    if len(prints) and not prints.embeddings.shape[1]:
        raise ConfigError(
            "semantic dedup needs embeddings, and none were measured", where="dedup.semantic",
            next_step="set signals.embedding, then curate again",
        )  # fmt: skip
    order = prints.by_preference()
    parts = [
        semantic_copies(prints.embeddings, order[(remaining & (prints.video == video))[order]], config.min_cosine)
        for video in (True, False)
    ]
    return np.concatenate([p.rows for p in parts]), np.concatenate([p.of for p in parts])


__all__ = ["EXACT", "NEAR", "SEMANTIC", "Copies", "Fingerprints", "Signature", "find_duplicates"]
