"""Near copies by perceptual hashes over several frames, and who of them stays.

A clip is a near copy of another when most of its sampled frames have a close frame anywhere in the other:
a trailer's cut finds its film whatever its in and out points. One frame would not do: black ones match all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig
from dataprep.dedup.fingerprints import Fingerprints
from dataprep.dedup.hash_index import HashIndex
from dataprep.dedup.ragged import laid_out
from dataprep.dedup.sketches import Members, Pairs, candidate_pairs
from dataprep.signals.phash import distance

COMPLETE_HASHES = 2_000_000  # dense hashes up to which every pair within the limit is looked at
_COMPARED = 4_000_000
_ASKED = 1 << 12  # clips asked together


def near_copies(
    prints: Fingerprints, remaining: NDArray[np.bool_], config: DedupConfig, complete: bool | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are dropped among `remaining`, and the row each is a copy of.

    Up to `COMPLETE_HASHES` hashes the search misses nothing; beyond, candidates come from sketches. `complete`
    decides instead of the number.
    """
    rows = prints.by_preference()
    rows = rows[(remaining & prints.perceptual)[rows]]
    places = np.full(len(prints), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    members = Members(rows, places)
    if complete is None:
        complete = int(np.diff(prints.dense_starts)[rows].sum()) <= COMPLETE_HASHES
    if complete:
        pairs = _all_pairs(prints, members, config)
    else:
        found = candidate_pairs(prints, members, config.max_distance)
        near = _contained(prints, members, found, config)
        near[~near] = _contained(prints, members, found[~near][:, ::-1], config)
        pairs = found[near]
    dropped, stays = leaders(pairs, len(rows))
    return rows[dropped], rows[stays]


def leaders(pairs: Pairs, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """From the first place on: a clip near one that stays goes, and counts as a copy of the first such. `pairs`
    are (smaller, larger) places. A clip that goes drags no other with it."""
    dropped = np.full(count, -1, dtype=np.int64)
    gone = bytearray(count)
    for first, second in pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))].tolist():
        if not gone[first] and not gone[second]:
            gone[second] = 1
            dropped[second] = first
    places = np.flatnonzero(dropped >= 0)
    return places, dropped[places]


def _all_pairs(prints: Fingerprints, members: Members, config: DedupConfig) -> Pairs:
    """Every pair of places, the smaller first, of which one contains the other."""
    rows = members.rows
    lengths = np.diff(prints.dense_starts)[rows]
    parts = list(laid_out(prints.dense_starts[rows], prints.dense_starts[rows + 1], _COMPARED))
    if not parts:
        return np.zeros((0, 2), np.int64)
    dense = np.concatenate([np.asarray(prints.dense[p]) for _, p in parts])
    owners = np.repeat(np.arange(len(rows)), lengths)
    index, owners = HashIndex(dense[dense != 0]), owners[dense != 0]
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(rows), _ASKED):
        asked, asking = _asked(prints, rows[start : start + _ASKED], start)
        if not len(asked):
            continue
        # A pair (frame of the asking clip, clip that has a close frame) counts once.
        hits = [
            part[0] * len(rows) + owners[part[1]]
            for part in (p.T for p in index.pairs(asked, config.max_distance))
            if part.size
        ]
        frames, others = np.divmod(np.unique(np.concatenate([np.zeros(0, np.int64), *hits])), len(rows))
        both, matches = np.unique(asking[frames] * len(rows) + others, return_counts=True)
        one, other = np.divmod(both, len(rows))
        enough = matches >= config.min_match * np.bincount(asking, minlength=len(rows))[one]
        enough &= _comparable(prints, rows[one], rows[other])
        pairs = np.stack([one[enough], other[enough]], axis=1)
        found.append(np.sort(pairs, axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _asked(prints: Fingerprints, rows: NDArray[np.int64], offset: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Sampled hashes that ask, and the place of the clip of each. At least half of a clip's samples must have
    structure, or a fade decides alone."""
    low, high = prints.sampled_starts[rows], prints.sampled_starts[rows + 1]
    parts = list(laid_out(low, high, _COMPARED))
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    owner = np.concatenate([r for r, _ in parts])
    hashes = prints.sampled[np.concatenate([p for _, p in parts])]
    with_structure = np.bincount(owner, weights=hashes != 0, minlength=len(rows))
    asks = (hashes != 0) & (2 * with_structure >= high - low)[owner]
    return hashes[asks], owner[asks] + offset


def _contained(prints: Fingerprints, members: Members, pairs: Pairs, config: DedupConfig) -> NDArray[np.bool_]:
    """(n,) whether enough of the first's sampled frames are close to frames of the second."""
    result = np.zeros(len(pairs), dtype=np.bool_)
    for start in range(0, len(pairs), _ASKED):
        one, other = members.rows[pairs[start : start + _ASKED]].T
        asked, pair = _asked(prints, one, 0)
        low, high = prints.dense_starts[other][pair], prints.dense_starts[other + 1][pair]
        matched = np.zeros(len(asked), dtype=np.bool_)
        for sample, places in laid_out(low, high, _COMPARED):
            answers = np.asarray(prints.dense[places])
            close = (answers != 0) & (distance(asked[sample], answers) <= config.max_distance)
            matched[sample[close]] = True
        matches = np.bincount(pair, weights=matched, minlength=len(one))
        wanted = config.min_match * np.bincount(pair, minlength=len(one))
        prints.release()  # pairs lie all over the mapped files
        result[start : start + _ASKED] = (wanted > 0) & (matches >= wanted) & _comparable(prints, one, other)
    return result


def _comparable(prints: Fingerprints, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    files = prints.files
    apart = (files[one] != files[other]) | (files[one] == 0)
    return np.asarray((one != other) & (prints.video[one] == prints.video[other]) & apart, dtype=np.bool_)
