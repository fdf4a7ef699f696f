"""Bounds on the work of one item, and what a worker process has used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_INF = float("inf")
_STAT_UTIME, _STAT_STIME = 11, 12  # fields of /proc/PID/stat after the name


@dataclass(frozen=True)
class WorkLimits:
    """Seconds on the clock, seconds of processor, bytes of resident memory; None for no bound."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_bytes: int | None = None

    def as_list(self) -> list[float | None]:
        return [self.wall_s, self.cpu_s, self.memory_bytes]

    def wider_than(self, other: list[float | None]) -> bool:
        """Whether any bound is wider than it was in `other`, a list as of `as_list`."""
        pairs = zip(self.as_list(), other, strict=True)
        return any((_INF if a is None else a) > (_INF if b is None else b) for a, b in pairs)

    @property
    def needs_usage(self) -> bool:
        return self.cpu_s is not None or self.memory_bytes is not None


class Usage(NamedTuple):
    """Processor time of a process since its start, and its resident memory now."""

    cpu_s: float
    memory_bytes: int


def usage_of(pid: int) -> Usage | None:
    """None where the system does not tell (no /proc), or the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    ticks = int(fields[_STAT_UTIME]) + int(fields[_STAT_STIME])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))
