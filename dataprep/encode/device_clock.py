"""How long a device computed and how long it stood, in its own time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class DeviceClock:
    """`busy_s` the device encoded, `waited_s` it stood between two clips: for frames, as nothing else is missing."""

    frames: int = 0
    busy_s: float = 0.0
    waited_s: float = 0.0
    _last: Mark | None = field(default=None, repr=False)

    def figures(self) -> dict[str, float | None]:
        """For the stage's metrics; None when the device had nothing to do."""
        whole = self.busy_s + self.waited_s
        return {
            "device_busy_s": round(self.busy_s, 3),
            "device_waited_share": round(self.waited_s / whole, 5) if whole else None,
            "device_frames_per_s": round(self.frames / whole, 2) if whole else None,
        }

    def add(self, frames: int, begin: Mark, end: Mark) -> None:
        """Both marks have been passed; clips come in the order in which the device took them."""
        self.frames += frames
        self.busy_s += begin.until(end)
        if self._last is not None:
            self.waited_s += max(0.0, self._last.until(begin))
        self._last = end


class Mark:
    """A point in the device's own time."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()
        self._time = time.perf_counter()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def until(self, later: Mark) -> float:
        """Seconds to a later mark, both passed."""
        if self._event is None or later._event is None:
            return later._time - self._time
        return float(self._event.elapsed_time(later._event)) / 1000
