"""Complete look-up of 64-bit hashes within a few bits, for collections whose hashes can all be asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dataprep.dedup.ragged import laid_out
from dataprep.signals.phash import distance

Hashes = NDArray[np.uint64]

_BANDS, _BAND_BITS = 4, 16
_PROBES = np.array([0, *(1 << bit for bit in range(_BAND_BITS))], dtype=np.int64)
_CHUNK = 4096  # queries looked up together
_COMPARED = 4_000_000  # pairs of hashes compared together


class HashIndex:
    """64-bit hashes by four bands of 16 bits, each also looked up with one bit flipped.

    Two hashes at most 7 bits apart have a band with at most one differing bit, so nothing within 7 is missed.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        self._orders, self._starts = [], []
        for band in range(_BANDS):
            values = self._band(hashes, band)
            order = np.argsort(values, kind="stable").astype(np.int32 if len(hashes) < 1 << 31 else np.int64)
            self._orders.append(order)
            self._starts.append(np.searchsorted(values[order], np.arange((1 << _BAND_BITS) + 1)))

    @staticmethod
    def _band(hashes: Hashes, band: int) -> NDArray[np.int64]:
        return np.asarray((hashes >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF), dtype=np.int64)

    def within(self, queries: Hashes, max_distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (place in queries, place in the index) at most `max_distance` bits apart, without repeats."""
        none = np.zeros((0, 2), np.int64)
        pairs = np.unique(np.concatenate([none, *self.pairs(queries, max_distance)]), axis=0)
        return pairs[:, 0], pairs[:, 1]

    def pairs(self, queries: Hashes, max_distance: int) -> Iterator[NDArray[np.int64]]:
        """The pairs of `within` as (n, 2) parts, one pair in up to four of them."""
        for offset in range(0, len(queries), _CHUNK):
            part = queries[offset : offset + _CHUNK]
            for band in range(_BANDS):
                for found in self._probe(part, band, max_distance):
                    yield found + np.array([offset, 0])

    def _probe(self, queries: Hashes, band: int, max_distance: int) -> Iterator[NDArray[np.int64]]:
        probed = (self._band(queries, band)[:, None] ^ _PROBES).ravel()
        asking = np.repeat(np.arange(len(queries)), len(_PROBES))
        low, high = self._starts[band][probed], self._starts[band][probed + 1]
        for rows, places in laid_out(low, high, _COMPARED):
            answers, askers = self._orders[band][places], asking[rows]
            close = distance(queries[askers], self._hashes[answers]) <= max_distance
            yield np.stack([askers[close], answers[close]], axis=1).astype(np.int64)
