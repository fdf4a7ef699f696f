"""Digests of files, remembered between scans by (path, size, times) outside every artifact.

The cache only saves time: a lost or locked one means hashing again, never another result.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from m4v.core.canonical import digest_file
from m4v.core.storage import Storage

DigestMode = Literal["full", "sampled"]
_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10
# A file changed just now may change again within one tick of the file system's clock.
_SETTLED_NS = 2_000_000_000
_BATCH = 512
_BLOCK = 1 << 20


def cache_file() -> Path:
    """`digests.sqlite` below `M4V_CACHE`, else below `~/.cache/m4v`."""
    return Path(os.environ.get("M4V_CACHE") or Path.home() / ".cache" / "m4v") / "digests.sqlite"


def sampled_digest(path: Path) -> str:
    """sha256 of the size and 16 evenly spread blocks of 64 KiB; of all bytes for files up to 1 MiB."""
    with path.open("rb") as stream:
        return stream_digest(stream, path.stat().st_size, "sampled")


def stream_digest(stream: IO[bytes], size: int, mode: DigestMode, start: int = 0) -> str:
    """Digest of the `size` bytes from `start` on of a seekable stream; raises EOFError when it ends before."""
    if mode == "full":
        sha = hashlib.sha256()
        blocks = [(at, min(_BLOCK, size - at)) for at in range(0, size, _BLOCK)]
    elif size <= _SAMPLES * _SAMPLE_BYTES:
        sha, blocks = hashlib.sha256(f"sampled:{size}:".encode()), [(0, size)]
    else:
        sha = hashlib.sha256(f"sampled:{size}:".encode())
        blocks = [((size - _SAMPLE_BYTES) * i // (_SAMPLES - 1), _SAMPLE_BYTES) for i in range(_SAMPLES)]
    for at, length in blocks:
        stream.seek(start + at)
        block = stream.read(length)
        if len(block) != length:
            raise EOFError(f"{len(block)} of {length} bytes at {start + at}")
        sha.update(block)
    return sha.hexdigest()


class DigestCache:
    """Use as a context manager. Two processes may share one file."""

    reads = True  # bytes of media

    def __init__(self, file: Path | None = None) -> None:
        self._file = cache_file() if file is None else file
        self._database: sqlite3.Connection | None = None
        self._pending: list[tuple[str, str, int, int, int, str]] = []
        self.hits = self.misses = 0

    def __enter__(self) -> DigestCache:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._file, timeout=10, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS digest (path TEXT, mode TEXT, size INTEGER, mtime_ns INTEGER, "
                "ctime_ns INTEGER, digest TEXT, PRIMARY KEY (path, mode)) WITHOUT ROWID"
            )
            self._database.execute("BEGIN")  # one read transaction: no lock taken and given back at every look-up
        except (sqlite3.Error, OSError):
            self._database = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        if self._database is not None:
            self._database.close()
            self._database = None

    def of(self, location: Storage, path: str, size: int, mode: DigestMode = "full") -> str:
        """Digest of a file of a collection, local or remote; raises OSError when it cannot be read."""
        if location.is_local:
            local = f"{location.uri}/{path}"
            return self.digest(local, os.stat(local), mode)  # noqa: PTH116 - a million Path objects cost seconds
        with location.open(path) as stream:
            return stream_digest(stream, size, mode)

    def digest(self, path: Path | str, status: os.stat_result, mode: DigestMode = "full") -> str:
        """Digest of a local file (by its absolute path) whose `stat` the caller has; raises OSError when it
        cannot be read."""
        key = (os.fsencode(path).decode("utf-8", "backslashreplace"), mode)
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return self.remembered(
            key, facts, lambda: digest_file(Path(path)) if mode == "full" else sampled_digest(Path(path))
        )

    def remembered(self, key: tuple[str, str], facts: tuple[int, int, int], compute: Callable[[], str]) -> str:
        """A digest under a key of the caller's, computed when it is not known for these facts."""
        if (known := self._lookup(key, facts)) is not None:
            self.hits += 1
            return known
        self.misses += 1
        value = compute()
        if time.time_ns() - max(facts[1:]) > _SETTLED_NS:
            self._pending.append((*key, *facts, value))
            if len(self._pending) >= _BATCH:
                self._flush()
        return value

    def _lookup(self, key: tuple[str, str], facts: tuple[int, int, int]) -> str | None:
        if self._database is None:
            return None
        try:
            row = self._database.execute(
                "SELECT size, mtime_ns, ctime_ns, digest FROM digest WHERE path = ? AND mode = ?", key
            ).fetchone()
        except sqlite3.Error:
            return None
        return str(row[3]) if row is not None and tuple(row[:3]) == facts else None

    def _flush(self) -> None:
        if self._database is not None and self._pending:
            try:
                self._database.execute("COMMIT")
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?, ?, ?)", self._pending)
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            self._database.execute("BEGIN")
        self._pending = []


class NoDigests(DigestCache):
    """For reports: names a file by its path and size and reads none of its bytes."""

    reads = False

    def __enter__(self) -> NoDigests:
        return self

    def of(self, location: Storage, path: str, size: int, mode: DigestMode = "full") -> str:
        return hashlib.sha256(f"unread:{size}:{path}".encode()).hexdigest()

    def digest(self, path: Path | str, status: os.stat_result, mode: DigestMode = "full") -> str:
        return hashlib.sha256(f"unread:{status.st_size}:".encode() + os.fsencode(path)).hexdigest()

    def remembered(self, key: tuple[str, str], facts: tuple[int, int, int], compute: Callable[[], str]) -> str:
        return hashlib.sha256(f"unread:{facts[0]}:{key[0]}".encode()).hexdigest()
