"""Many Python objects in little memory: they lie pickled in an unnamed temporary file, a batch at a time is here."""

from __future__ import annotations

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import IO, Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

BATCH = 512  # objects that are read together
RUN = 50_000  # objects that are sorted in memory
_RUN_BATCH = 64  # of each run, while all are merged
_CODEC = "lz4"

T = TypeVar("T")


class _Place(NamedTuple):
    offset: int
    stored: int  # bytes in the file
    size: int  # bytes once decompressed


class _File:
    """Batches in a file that goes with this object; it is made by the first one."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0

    def write(self, batch: list[Any]) -> _Place:
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its owner
        data = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
        packed = pa.compress(data, codec=_CODEC, asbytes=True)
        place = _Place(self._end, len(packed), len(data))
        self._file.seek(self._end)
        self._file.write(packed)
        self._end += len(packed)
        return place

    def read(self, place: _Place) -> list[Any]:
        assert self._file is not None  # a place comes from `write`
        self._file.seek(place.offset)
        data = pa.decompress(self._file.read(place.stored), place.size, codec=_CODEC, asbytes=True)
        found: list[Any] = pickle.loads(data)
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Spool(Generic[T]):
    """Objects in the order in which they were added, to be read as often as wanted; a short spool makes no file.

    What is read is equal to what was added, and another object once there is a file.
    """

    def __init__(self) -> None:
        self._file, self._places, self._last = _File(), list[_Place](), list[T]()
        self._count = 0

    def append(self, one: T) -> None:
        self._last.append(one)
        self._count += 1
        if len(self._last) == BATCH:
            self._places.append(self._file.write(self._last))
            self._last = []

    def extend(self, many: Iterable[T]) -> None:
        for one in many:
            self.append(one)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[T]]:
        """Runs of at most `BATCH` objects; those that are added meanwhile come too."""
        number = 0
        while number < len(self._places):
            yield self._file.read(self._places[number])
            number += 1
        if self._last:
            yield list(self._last)

    def close(self) -> None:
        """Give the file back; nothing can be read any more."""
        self._file.close()


class SortedSpool(Generic[T]):
    """Objects to be read in the order of `key`; equal keys keep the order in which they were added."""

    def __init__(self, key: Callable[[T], Any], *, run: int = RUN) -> None:
        self._key, self._run = key, run
        self._file, self._runs, self._last = _File(), list[list[_Place]](), list[T]()
        self._count = 0

    def append(self, one: T) -> None:
        self._last.append(one)
        self._count += 1
        if len(self._last) == self._run:
            self._last.sort(key=self._key)
            starts = range(0, self._run, _RUN_BATCH)
            self._runs.append([self._file.write(self._last[k : k + _RUN_BATCH]) for k in starts])
            self._last = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        last = sorted(self._last, key=self._key)
        return heapq.merge(*map(self._stored, self._runs), last, key=self._key)

    def _stored(self, places: list[_Place]) -> Iterator[T]:
        for place in places:
            yield from self._file.read(place)

    def close(self) -> None:
        """Give the file back; nothing can be read any more."""
        self._file.close()


def chunks(many: Iterable[T], size: int) -> Iterator[list[T]]:
    """Runs of `size`, the last may be shorter."""
    rest = iter(many)
    while some := list(islice(rest, size)):
        yield some
