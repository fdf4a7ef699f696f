"""What an engine does now and has done: read by a stage while it maps, and again for its final figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Meter:
    """`workers` are up and `working` of them busy; `waiting` items of the map have not begun, None where their number
    is not known. The rest counts from the start of the engine: `finished` items, `retried` ones (given to another
    worker because theirs went away), `workers_started`, and `cpu_s`, processor time of all finished items."""

    workers: int = 0
    working: int = 0
    waiting: int | None = None
    finished: int = 0
    retried: int = 0
    workers_started: int = 0
    cpu_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """`12 waiting, 4 at work on 4 workers`, for a progress note."""
        waiting = "" if self.waiting is None else f"{self.waiting} waiting, "
        return f"{waiting}{self.working} at work on {self.workers} {'worker' if self.workers == 1 else 'workers'}"

    def figures(self, video_s: float) -> dict[str, float | None]:
        """Figures of a whole stage that worked on `video_s` seconds of video (what was cached does not count).

        `video_hours_per_hour` is by the clock, `cpu_s_per_video_minute` by the processors of the workers; both are
        None when no video had to be worked on.
        """
        took = time.monotonic() - self.started
        return {
            "items_worked": self.finished,
            "items_retried": self.retried,
            "workers_started": self.workers_started,
            "worker_cpu_s": round(self.cpu_s, 3),
            "video_hours": round(video_s / 3600, 6),
            "video_hours_per_hour": round(video_s / took, 3) if video_s and took > 0 else None,
            "cpu_s_per_video_minute": round(self.cpu_s / video_s * 60, 3) if video_s else None,
        }
