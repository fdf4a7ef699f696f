"""Columns that may be large, in unnamed temporary files once they are: memory holds only the pages being read."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from typing import IO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

_SPILL_BYTES = 64 << 20

ScalarT = TypeVar("ScalarT", bound=np.generic)


class Spilled:
    """Values laid end to end, in an unnamed temporary file once they are many."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.generic]] = []
        self._count = self._waiting = 0
        self._file: IO[bytes] | None = None
        self.mapping: mmap.mmap | None = None

    def add(self, values: NDArray[np.generic]) -> None:
        self._parts.append(values)
        self._count += len(values)
        self._waiting += values.nbytes
        if self._waiting > _SPILL_BYTES:
            self._write()

    def whole(self, kind: type[ScalarT]) -> NDArray[ScalarT]:
        if self._file is None:
            return np.concatenate([np.zeros(0, kind), *self._parts], dtype=kind)
        self._write()
        self._file.flush()
        self.mapping = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self.mapping, dtype=kind, count=self._count)

    def _write(self) -> None:
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its mapping
        for part in self._parts:
            part.tofile(self._file)
        self._parts, self._waiting = [], 0


class Texts(Sequence[str]):
    """Texts that are added in batches, then read by place: eight bytes of memory each, the rest lies in a file."""

    def __init__(self) -> None:
        self._spilled, self._lengths, self._count = Spilled(), Spilled(), 0
        self._data: NDArray[np.uint8] | None = None
        self._ends = np.zeros(1, np.int64)

    def add(self, texts: Sequence[str]) -> None:
        """Raises ValueError after a text was read."""
        if self._data is not None:
            raise ValueError("texts are being read, none can be added")
        encoded = [text.encode() for text in texts]
        self._count += len(encoded)
        self._lengths.add(np.array([len(text) for text in encoded], dtype=np.int64))
        self._spilled.add(np.frombuffer(b"".join(encoded), dtype=np.uint8))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[k] for k in range(*place.indices(len(self)))]
        if self._data is None:
            self._data = self._spilled.whole(np.uint8)
            self._ends = np.concatenate([self._ends, np.cumsum(self._lengths.whole(np.int64))])
            self._lengths = Spilled()
        place = range(len(self))[place]
        return self._data[self._ends[place] : self._ends[place + 1]].tobytes().decode()
