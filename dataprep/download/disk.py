"""What a download may hold on the local disk: a limit of its own, and space that stays free for everybody else."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dataprep.download.config import DownloadConfig
from m4v.core.errors import ConfigError, InfrastructureError

_STEP = 16 << 20  # of a body of unknown length, bytes that are asked for at a time
_POLL_S = 0.2


def _free_bytes(folder: Path) -> int:
    """Of the disk on which a folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


@dataclass
class _Held:
    """Bytes that a file may come to have on the disk, and those that are there."""

    promised: int
    written: int
    waiting: bool = False


class Disk:
    """Books of the bytes that one download has on the local disk, shared by its threads.

    `kept`: bytes of files that lie in their place already. `stays`: fetched files stay on this disk (a local
    collection); else they leave it when they are in their place, so a file may wait for room. `stopped()` ends a wait.
    """

    def __init__(
        self, config: DownloadConfig, folder: Path, *, kept: int = 0, stays: bool = True,
        stopped: Callable[[], bool] = lambda: False, free_bytes: Callable[[Path], int] = _free_bytes,
    ) -> None:  # fmt: skip
        self._limit, self._spare = config.max_disk_bytes, config.min_free_bytes
        self._step = _STEP if self._limit is None else min(_STEP, max(1, self._limit // 64))
        self._folder, self._kept, self._stays = folder, kept if stays else 0, stays
        self._stopped, self._free_bytes = stopped, free_bytes
        self._changed = threading.Condition()
        self._held: dict[Path, _Held] = {}
        self._left = {part: part.stat().st_size for part in folder.rglob("*.part")}  # of runs before this one

    def begin(self, part: Path, have: int, total: int | None) -> None:
        """Ask for room for a file of `total` bytes (None: not known), of which `have` lie in `part` already.

        Waits for files that leave the disk. Raises ConfigError when the limit is reached, InfrastructureError when
        the disk would be too full.
        """
        with self._changed:
            self._left.pop(part, None)
            self._held[part] = _Held(have, have)
            self._grow(part, have + self._step if total is None else total)

    def wrote(self, part: Path, size: int) -> None:
        """`size` more bytes lie in `part`; asks for more room when they are more than was asked for."""
        with self._changed:
            held = self._held[part]
            held.written += size
            if held.written > held.promised:
                self._grow(part, held.written + self._step)

    def end(self, part: Path, *, placed: bool) -> None:
        """No thread works on `part` any more: it is in its place, or what is left of it waits to be gone on with."""
        with self._changed:
            held, left = self._held.pop(part, None), self._left.pop(part, 0)
            if placed:
                self._kept += (left if held is None else held.written) if self._stays else 0
            elif part.exists():
                self._left[part] = part.stat().st_size
            self._changed.notify_all()

    def _grow(self, part: Path, promised: int) -> None:
        held = self._held[part]
        while problem := self._problem(promised - held.promised):
            held.waiting = True
            others = any(not one.waiting for one in self._held.values())
            if self._stays or not others or self._stopped():
                raise problem
            self._changed.wait(_POLL_S)
        held.promised, held.waiting = promised, False

    def _problem(self, more: int) -> ConfigError | InfrastructureError | None:
        held = self._kept + sum(self._left.values()) + sum(h.promised for h in self._held.values())
        if self._limit is not None and held + more > self._limit:
            return ConfigError(
                f"the download would hold {held + more} bytes on disk, more than it may", value=self._limit,
                where=str(self._folder),
                next_step="raise download.max_disk_bytes and run again: it goes on where it ended",
            )  # fmt: skip
        free = self._free_bytes(self._folder) - sum(max(0, h.promised - h.written) for h in self._held.values())
        if free - more < self._spare:
            return InfrastructureError(
                f"the disk would have {max(0, free - more)} bytes left, less than download.min_free_bytes",
                value=self._spare, where=str(self._folder),
                next_step="free some space and run again: it goes on where it ended",
            )  # fmt: skip
        return None
