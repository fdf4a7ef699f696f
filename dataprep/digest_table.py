"""Which 128-bit digests were seen, with a number for each: ten million take 400 MB, in a dict they took thrice that."""

from __future__ import annotations

import struct
from array import array

DIGEST_BYTES = 16
_WORDS = struct.Struct("<QQ")
_FREE = -1
_FEWEST = 1 << 12  # slots, a power of two


class DigestTable:
    """Digests (uniformly distributed bytes) with a number from 0 on; open addressing in flat arrays."""

    def __init__(self) -> None:
        self._allot(_FEWEST)
        self._count = 0

    def _allot(self, slots: int) -> None:
        self._low, self._high = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
        self._numbers = array("q", [_FREE]) * slots
        self._mask = slots - 1

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes, number: int) -> int | None:
        """None for a new digest, which gets `number`; else the number that it has."""
        low, high = _WORDS.unpack(digest)
        place = self._place(low, high)
        if self._numbers[place] != _FREE:
            return self._numbers[place]
        self._low[place], self._high[place], self._numbers[place] = low, high, number
        self._count += 1
        if 3 * self._count > 2 * (self._mask + 1):
            self._grow()
        return None

    def _place(self, low: int, high: int) -> int:
        """The slot of a digest, or the free one where it belongs."""
        mask, numbers = self._mask, self._numbers
        place = low & mask
        while numbers[place] != _FREE and (self._low[place] != low or self._high[place] != high):
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        before = zip(self._low, self._high, self._numbers, strict=True)
        self._allot(2 * (self._mask + 1))
        for low, high, number in before:
            if number != _FREE:
                place = self._place(low, high)
                self._low[place], self._high[place], self._numbers[place] = low, high, number
