"""What table adapters remember of millions of rows, in little memory: seen keys, and rows grouped on disk."""

from __future__ import annotations

import hashlib
import marshal
import sqlite3
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

_EMPTY = 0
_BATCH = 2000


def key_of(text: str) -> int:
    """64 bits of a text; two of ten million texts share them with a chance of 3e-6."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


class KeySet:
    """A set of 64-bit keys in one flat array: 16 to 32 bytes a key, where a set of integers takes some 100."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        key = key or 1
        slots, mask = self._slots, len(self._slots) - 1
        at = key & mask
        while (held := slots[at]) != _EMPTY:
            if held == key:
                return True
            at = (at + 1) & mask
        return False

    def add(self, key: int) -> bool:
        """True when the key is new."""
        key = key or 1
        slots, mask = self._slots, len(self._slots) - 1
        at = key & mask
        while (held := slots[at]) != _EMPTY:
            if held == key:
                return False
            at = (at + 1) & mask
        slots[at] = key
        self._count += 1
        if 2 * self._count > len(slots):
            self._grow()
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        slots, mask = self._slots, len(self._slots) - 1
        for key in old:
            if key != _EMPTY:
                at = key & mask
                while slots[at] != _EMPTY:
                    at = (at + 1) & mask
                slots[at] = key


class SpanRow(NamedTuple):
    """One annotation: frames first..last (inclusive, None = all) of a file, with JSON facts."""

    path: str
    first: int | None
    last: int | None
    facts: dict[str, object]


class SpanGroups:
    """Rows spilled to a private temporary database, given back span by span.

    Files come in the order of their first row, spans of a file by their frames, rows of a span as added.
    """

    def __enter__(self) -> SpanGroups:
        self._database = sqlite3.connect("", isolation_level=None)  # on disk, without a name, gone when closed
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("PRAGMA temp_store=FILE")
        self._database.execute("CREATE TABLE row (seq INTEGER PRIMARY KEY, key INT, path, first INT, last INT, facts)")
        self._database.execute("BEGIN")
        self._pending: list[tuple[int, str, int | None, int | None, bytes]] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, row: SpanRow) -> None:
        signed = key_of(row.path) - (1 << 63)
        facts = marshal.dumps(row.facts)  # read back by this process alone, from a file without a name
        self._pending.append((signed, row.path, row.first, row.last, facts))
        if len(self._pending) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        statement = "INSERT INTO row (key, path, first, last, facts) VALUES (?, ?, ?, ?, ?)"
        self._database.executemany(statement, self._pending)
        self._pending = []

    def spans(self) -> Iterator[list[SpanRow]]:
        """The rows of one span at a time."""
        self._flush()
        ordered = self._database.execute(
            "SELECT path, first, last, facts, MIN(seq) OVER (PARTITION BY key) AS place, seq FROM row"
            " ORDER BY place, first, last, seq"
        )
        group: list[SpanRow] = []
        for path, first, last, facts, _, _ in ordered:
            row = SpanRow(path, first, last, marshal.loads(facts))
            if group and row[:3] != group[0][:3]:
                yield group
                group = []
            group.append(row)
        if group:
            yield group
