"""Signs of life of the ranks of a training stage, and how to tell that they hang. Torch-free.

Every rank writes `heartbeat.RANK.json` into the attempt's folder when a step or a long phase begins, and opens
`stacks.RANK.txt`, where SIGUSR1 puts the stacks of all its threads, even of one that hangs in C. A supervisor reads
the files, asks `find_hang`, and on a hang calls `dump_stacks` before it ends the ranks and starts the stage again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError

from m4v.core.config import FrozenModel

STACKS = "stacks.{rank}.txt"
Phase = Literal["start", "step", "validation", "save", "end"]
_REMEMBERED = 64  # steps whose median counts
_SPARE_S = 0.5  # between two files about quick steps


class Heartbeat(FrozenModel):
    """`heartbeat.RANK.json`: since `at` (Unix seconds) the rank is in `phase`, with `step` steps finished of which
    the last ones took `median_s` each (None before the second)."""

    schema_version: int = 1
    rank: int
    pid: int
    step: int
    phase: Phase
    at: float
    median_s: float | None = None


class HangLimits(FrozenModel):
    """A step hangs after `factor` times the median step, `least_s` at the least; starting, validating, saving and
    ending after `phase_s`."""

    factor: float = 20.0
    least_s: float = 120.0
    phase_s: float = 3600.0

    def of(self, beat: Heartbeat) -> float:
        """Seconds after a heartbeat by which the next must have come."""
        if beat.phase != "step" or beat.median_s is None:
            return self.phase_s
        return max(self.least_s, self.factor * beat.median_s)


@dataclass(frozen=True)
class Hang:
    """No rank has gone on for `silent_s`, more than `limit_s`; `ranks` are the furthest behind."""

    step: int
    ranks: tuple[int, ...]
    silent_s: float
    limit_s: float

    @property
    def message(self) -> str:
        ranks = ", ".join(map(str, self.ranks))
        return f"no step for {self.silent_s:.0f} s (limit {self.limit_s:.0f} s) after step {self.step}: rank {ranks}"


class Pulse:
    """The heartbeat of this rank."""

    def __init__(self, folder: Path, rank: int, step: int) -> None:
        self._folder, self._rank, self._step = folder, rank, step
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._written = 0.0
        self._phase: Phase = "start"
        self._stacks: IO[str] = (folder / STACKS.format(rank=rank)).open("w")
        faulthandler.register(signal.SIGUSR1, self._stacks, all_threads=True)
        self.enter("start")

    def enter(self, phase: Phase) -> None:
        """A phase begins; that of a step also ends the one before."""
        if phase != self._phase or time.monotonic() - self._written >= _SPARE_S or not self._written:
            self._phase = phase
            self._write()

    def finished(self, step: int, seconds: float) -> None:
        """`step` steps are finished, the last of which took `seconds`."""
        self._step = step
        self._seconds.append(seconds)
        self.enter("step")

    def close(self) -> None:
        """The rank leaves its loop. What follows (the export) has no steps."""
        self.enter("end")
        faulthandler.unregister(signal.SIGUSR1)
        # A stray signal after this point must not end the rank, which is unregister's default.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self._stacks.close()

    def _write(self) -> None:
        steady = list(self._seconds)[1:]
        beat = Heartbeat(
            rank=self._rank, pid=os.getpid(), step=self._step, phase=self._phase, at=time.time(),
            median_s=statistics.median(steady) if steady else None,
        )  # fmt: skip
        path = self._folder / f"heartbeat.{self._rank}.json"
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a missed beat shows by itself; the next may work
            temporary.write_text(beat.model_dump_json())
            temporary.replace(path)
        self._written = time.monotonic()


def read_heartbeats(folder: Path) -> list[Heartbeat]:
    """Heartbeats in an attempt's folder by rank; a file that does not parse is left out."""
    beats = []
    for path in folder.glob("heartbeat.*.json"):
        with contextlib.suppress(OSError, ValidationError):
            beats.append(Heartbeat.model_validate_json(path.read_bytes()))
    return sorted(beats, key=lambda beat: beat.rank)


def find_hang(beats: Sequence[Heartbeat], now: float, limits: HangLimits) -> Hang | None:
    """The hang that heartbeats tell at a time (Unix seconds), or None. Ranks wait for each other in every step, so
    that the one with the most patience decides, and those with the fewest steps are to blame."""
    if not beats:
        return None
    newest = max(beats, key=lambda beat: beat.at + limits.of(beat))
    limit = limits.of(newest)
    silent = now - newest.at
    if silent <= limit:
        return None
    last = min(beat.step for beat in beats)
    return Hang(last, tuple(beat.rank for beat in beats if beat.step == last), silent, limit)


def dump_stacks(beats: Sequence[Heartbeat]) -> list[int]:
    """Ask ranks on this host for their stacks; the ranks that were there to ask. Reading them back takes a moment."""
    asked = []
    for beat in beats:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(beat.pid, signal.SIGUSR1)
            asked.append(beat.rank)
    return asked
