"""A seekable file over ranges that are fetched one by one, each as long as asked for or an error."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

FIRST_BYTES, MOST_BYTES = 1 << 18, 16 << 20
KEPT_BYTES = 48 << 20


class RangeReader(io.RawIOBase):
    """Reads `size` bytes through `fetch(start, end)`, which gives just these bytes or raises.

    A jump fetches `first` bytes (or what is read at once, if that is more); reading on doubles this up to `most`. The
    latest ranges are kept, `kept` bytes of them, so that the directory of an archive is fetched once. Wrap it in
    io.BufferedReader for small reads.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        size: int,
        *,
        first: int = FIRST_BYTES,
        most: int = MOST_BYTES,
        kept: int = KEPT_BYTES,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._fetch, self.size, self._close = fetch, size, close
        self._first, self._most, self._kept = first, most, kept
        self._at, self._ahead, self._next = 0, first, -1
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # by first byte, least recently used first

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fills `buffer`, short only at the end of the file."""
        view = memoryview(cast(bytearray, buffer)).cast("B")
        done = 0
        while done < len(view) and self._at < self.size:
            start, block = self._block(self._at, min(len(view) - done, self.size - self._at))
            piece = block[self._at - start : self._at - start + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def readall(self) -> bytes:
        data = bytearray(max(0, self.size - self._at))
        self.readinto(data)
        return bytes(data)

    def close(self) -> None:
        if not self.closed:
            self._blocks.clear()
            self._close()
        super().close()

    def _block(self, at: int, wanted: int) -> tuple[int, bytes]:
        """A kept or fetched range that holds byte `at`, and its first byte."""
        for start, block in reversed(self._blocks.items()):
            if start <= at < start + len(block):
                self._blocks.move_to_end(start)
                return start, block
        self._ahead = min(2 * self._ahead, self._most) if at == self._next else self._first
        end = min(self.size, at + min(max(wanted, self._ahead), self._most))
        block = self._fetch(at, end)
        self._next = end
        self._blocks.pop(at, None)
        self._blocks[at] = block
        while len(self._blocks) > 1 and sum(map(len, self._blocks.values())) > self._kept:
            self._blocks.popitem(last=False)
        return at, block
