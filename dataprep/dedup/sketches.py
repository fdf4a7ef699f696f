"""Candidate near copies of a large collection: clips whose frames share the smallest key of some table.

A table's key is four of a hash's eight bytes; a clip's sketch is its smallest (mixed) key in each quarter of the
key space. Clips with a common sketch and hashes there within the limit are candidates (min-wise hashing, Broder
1997, over banded keys). Hashes are read in runs, so memory is a few words a clip whatever the number of frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.dedup.fingerprints import Fingerprints, Hashes
from dataprep.dedup.ragged import laid_out
from dataprep.signals.phash import distance

Pairs = NDArray[np.int64]

TABLES = tuple(combinations(range(8), 4))
MINIMA = 4  # quarters of the key space
_RUN = 1 << 16  # hashes read together
_COMPARED = 4_000_000
_GROUP = 64  # clips with one key up to which all are compared with each other
_FIRST = 8  # in a larger group, the members by preference that every other one is compared with
_NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)
_THREADS = 2
_RELEASED = 64  # runs after which pages of mapped hashes are given back


class Members(NamedTuple):
    """The clips to compare, by falling preference: rows of the fingerprints."""

    rows: NDArray[np.int64]
    places: NDArray[np.int64]  # by row; -1 for a clip that is not compared


def candidate_pairs(prints: Fingerprints, members: Members, max_distance: int) -> Pairs:
    """(n, 2) places of members, the preferred first, without repeats. The same whatever the order of the rows."""

    found = np.zeros((0, 2), np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        for table in TABLES:
            keys, hashes = _minima(prints, members, table, pool)
            search = partial(_close, max_distance=max_distance)
            found = _unique([found, *pool.map(search, keys, hashes)])
    return found


def _minima(
    prints: Fingerprints, members: Members, table: tuple[int, ...], pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint32], Hashes]:
    """(MINIMA, members) smallest mixed keys of each clip, and the hashes that have them; hash 0 where there is none."""
    keys = np.zeros((MINIMA, len(members.rows)), dtype=np.uint32)
    hashes = np.zeros((MINIMA, len(members.rows)), dtype=np.uint64)

    def fill(run: tuple[int, int]) -> None:
        first, last = run
        starts = prints.dense_starts[first : last + 1]
        counts = np.diff(starts)
        filled = np.flatnonzero(counts)
        places = members.places[first + filled]
        wanted = places >= 0
        own = np.array(prints.dense[starts[0] : starts[-1]])
        begins = starts[:-1] - starts[0]
        if not wanted.any():
            return
        words = _mixed(own, table).astype(np.uint64) << np.uint64(32) | np.arange(len(own), dtype=np.uint64)
        structureless = np.flatnonzero(own == 0)
        for k in range(MINIMA):
            # With its own number taken off, quarter k has the smallest words.
            turned = words ^ np.uint64(k << 62)
            turned[structureless] = _NOTHING
            smallest = np.minimum.reduceat(turned, begins[filled])[wanted]
            some = smallest >> np.uint64(62) == 0
            keys[k, places[wanted][some]] = (smallest[some] >> np.uint64(32)).astype(np.uint32)
            hashes[k, places[wanted][some]] = own[(smallest[some] & np.uint64(0xFFFFFFFF)).astype(np.int64)]

    for number, _ in enumerate(pool.map(fill, _runs(prints.dense_starts))):
        if number % _RELEASED == 0:
            prints.release()
    return keys, hashes


def _runs(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of clips of about `_RUN` hashes together."""
    first, clips = 0, len(starts) - 1
    while first < clips:
        last = int(np.searchsorted(starts, starts[first] + _RUN, side="right")) - 1
        last = min(max(last, first + 1), clips)
        yield first, last
        first = last


def _mixed(hashes: Hashes, table: tuple[int, ...]) -> NDArray[np.uint32]:
    """Four bytes of each hash, spread over all 32-bit words by a bijection."""
    key = np.zeros(len(hashes), dtype=np.uint32)
    for shift, byte in enumerate(table):
        part = (hashes >> np.uint64(8 * byte)).astype(np.uint32) & np.uint32(0xFF)
        key |= part << np.uint32(8 * shift)
    for factor in (0x7FEB352D, 0x846CA68B):
        key ^= key >> np.uint32(16)
        key *= np.uint32(factor)
    return key ^ key >> np.uint32(15)


def _close(keys: NDArray[np.uint32], hashes: Hashes, max_distance: int) -> Pairs:
    """Pairs of places with one key whose hashes are close.

    A frame that very many clips share (a title card) must not cost the square of their number.
    """
    used = np.flatnonzero(hashes)
    words = keys[used].astype(np.uint64) << np.uint64(32) | used.astype(np.uint64)
    words.sort()
    same = np.diff(words >> np.uint64(32)) == 0
    shared = np.append(same, False) | np.insert(same, 0, False) if len(words) else np.zeros(0, np.bool_)
    words = words[shared]  # most clips are alone with their key
    shared_keys, places = words >> np.uint64(32), (words & np.uint64(0xFFFFFFFF)).astype(np.int64)
    begins = (
        np.flatnonzero(np.concatenate([[True], np.diff(shared_keys) != 0])) if len(words) else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.append(begins, len(words)))
    grouped = np.repeat(begins, sizes)
    own = np.arange(len(words))
    later = own > grouped
    own, low = own[later], grouped[later]
    high = np.where(np.repeat(sizes, sizes)[later] > _GROUP, np.minimum(own, low + _FIRST), own)
    found = []
    for rows, others in laid_out(low, high, _COMPARED):
        left, right = places[others], places[own[rows]]
        near = distance(hashes[left], hashes[right]) <= max_distance
        found.append(np.stack([left[near], right[near]], axis=1))
    return _unique(found)


def _unique(parts: list[Pairs]) -> Pairs:
    """Pairs without repeats, sorted."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *parts])
    words = np.unique(pairs[:, 0].astype(np.uint64) << np.uint64(32) | pairs[:, 1].astype(np.uint64))
    return np.stack([words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
