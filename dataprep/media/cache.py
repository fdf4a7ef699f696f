"""Local copies of remote files and of members of archives, bounded on disk and shared by the workers of a stage.

A copy that a worker uses is locked; others go, the longest unused first, when room is needed for new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.storage import is_temporary, storage_faults

LIMIT = "M4V_SCRATCH_GIB"  # of one stage's copies, GiB; none: what the disk has but for `_SPARE`
_SPARE = 1 << 30
_AMPLE = 16  # free space of so many files is looked at no closer
_POLL_S, _PATIENCE_S = 0.2, 120.0
_in_use: dict[int, IO[bytes]] = {}  # process -> its locked copy; a worker works on one file at a time


def limit_bytes() -> int | None:
    """The limit that the environment names; raises ConfigError for one that is no positive number."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise ConfigError(f"{LIMIT} is not a positive number", value=text, next_step=f"export {LIMIT}=200, or unset it")
    return int(gib * (1 << 30))


class MediaCache:
    """Copies below `folder`, together at most `limit` bytes, and never the last GiB of the disk."""

    def __init__(
        self, folder: Path, limit: int | None = None, *, patience_s: float = _PATIENCE_S,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:  # fmt: skip
        self._folder, self._limit, self._patience_s, self._free_bytes = folder, limit, patience_s, free_bytes

    def get(self, digest: str, size: int, make: Callable[[Path], None]) -> Path:
        """The copy of a file of this digest and size; `make(path)` writes it where it is not there. It stays until
        this process asks for another one.

        Raises ConfigError for a file larger than the limit, InfrastructureError when no room can be made; what `make`
        raises.
        """
        release()
        target = self._folder / digest[:2] / digest
        while True:
            if not _is_there(target, size):
                with storage_faults(str(self._folder)):
                    self._make(target, size, make)
            if self._hold(target):
                return target

    def _make(self, target: Path, size: int, make: Callable[[Path], None]) -> None:
        if self._limit is not None and size > self._limit:
            raise ConfigError(
                "file is larger than what local copies may hold", value=f"{size} of {self._limit} bytes",
                where=str(self._folder), next_step=f"raise {LIMIT} (GiB)",
            )  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        claim = target.with_name(f"{target.name}.room")  # says how much is on its way, while this process lives
        with claim.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                if not _is_there(target, size):  # another worker's, meanwhile
                    self._ask(claim, size)
                    make(target)
            finally:
                claim.unlink(missing_ok=True)

    def _ask(self, claim: Path, size: int) -> None:
        """Wait until there is room, and write the claim to it."""
        deadline = time.monotonic() + self._patience_s
        while True:
            with self._books() as books:
                if self._surely_fits(books, size) or self._fits(books, claim, size):
                    claim.write_text(str(size))
                    return
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    "no room for a local copy: all others are in use", value=f"{size} bytes", where=str(self._folder),
                    next_step=f"free some space, raise {LIMIT} or run fewer workers, then run again",
                )  # fmt: skip
            time.sleep(_POLL_S)

    @contextlib.contextmanager
    def _books(self) -> Iterator[IO[bytes]]:
        """One process at a time; the file holds a number of bytes that copies and claims do not exceed."""
        with (self._folder / "lock").open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _surely_fits(self, books: IO[bytes], size: int) -> bool:
        """Without a look at the copies, of which there may be many."""
        if self._free_bytes(self._folder) < _SPARE + _AMPLE * size:
            return False
        if self._limit is None:
            return True
        books.seek(0)
        text = books.read()
        if not text.isdigit() or int(text) + size > self._limit:
            return False
        _note(books, int(text) + size)
        return True

    def _fits(self, books: IO[bytes], claim: Path, size: int) -> bool:
        copies, claimed = self._copies(claim)
        held = claimed + sum(size for _, size, _ in copies)
        free = self._free_bytes(self._folder) - claimed - _SPARE
        room = free if self._limit is None else min(free, self._limit - held)
        wanted = size if self._limit is None else max(size, self._limit // 8)  # the next ones find room at once
        for _, gone, path in sorted(copies) if room < size else ():
            if room >= wanted:
                break
            if _evict(path):
                room, held = room + gone, held - gone
        _note(books, held + size if room >= size else held)
        return room >= size

    def _copies(self, own: Path) -> tuple[list[tuple[float, int, Path]], int]:
        """(last use, size, path) of the copies, and the bytes that others have claimed and not all written."""
        copies, claimed = [], 0
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                if path.suffix == ".room":
                    if path != own and not _abandoned(path):
                        claimed += int(path.read_text() or 0)
                elif not is_temporary(path.name):
                    found = path.stat()
                    copies.append((found.st_atime, found.st_size, path))
        return copies, claimed

    def _hold(self, target: Path) -> bool:
        """Lock a copy for this process; False when it has just gone."""
        try:
            stream = target.open("rb")
        except FileNotFoundError:
            return False
        fcntl.flock(stream, fcntl.LOCK_SH)
        if os.fstat(stream.fileno()).st_nlink == 0:
            stream.close()
            return False
        _in_use[os.getpid()] = stream
        with contextlib.suppress(OSError):
            os.utime(target, ns=(time.time_ns(), os.fstat(stream.fileno()).st_mtime_ns))
        return True


def release() -> None:
    """This process needs its copy no more."""
    if (stream := _in_use.pop(os.getpid(), None)) is not None:
        stream.close()


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _note(books: IO[bytes], held: int) -> None:
    books.truncate(0)
    books.write(str(held).encode())
    books.flush()


def _abandoned(claim: Path) -> bool:
    """Whether the worker that made a claim was killed; its claim goes."""
    with claim.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        claim.unlink(missing_ok=True)
        return True


def _evict(path: Path) -> bool:
    """Delete a copy that nobody uses."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
