"""What an engine does now and has done: read by a stage while it maps, and again for its final figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Meter:
    """`workers` are up and `working` of them busy; `waiting` items of the map have not begun, None where their number
    is not known. The rest counts from the start of the engine: `finished` items, `retried` ones (given to another
    worker because theirs went away), `workers_started`, `cpu_s` of all finished items, and `video_s`: seconds of
    video in what had to be worked on, not found done, as the user of the engine tells them."""

    workers: int = 0
    working: int = 0
    waiting: int | None = None
    finished: int = 0
    retried: int = 0
    workers_started: int = 0
    cpu_s: float = 0.0
    video_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """For a progress note: `12 waiting, 4 at work on 4 workers, 0.31 video-hours, 25 CPU-s a video-minute`."""
        parts = [] if self.waiting is None else [f"{self.waiting} waiting"]
        parts.append(f"{self.working} at work on {self.workers} {'worker' if self.workers == 1 else 'workers'}")
        if self.video_s:
            parts.append(f"{self.video_s / 3600:.2g} video-hours")
            parts.append(f"{self.cpu_s / self.video_s * 60:.2g} CPU-s a video-minute")
        return ", ".join(parts)

    def live(self) -> dict[str, float]:
        """The queue now, and the final figures so far."""
        now = {"waiting": self.waiting, "working": self.working, "workers": self.workers, **self.final()}
        return {name: value for name, value in now.items() if value is not None}

    def final(self) -> dict[str, float | None]:
        """Figures of the engine's whole life. `video_hours_per_hour` is by the clock, `cpu_s_per_video_minute` by the
        processors of the workers; both are None when no video had to be worked on."""
        took, video_s = time.monotonic() - self.started, self.video_s
        return {
            "items_worked": self.finished,
            "items_retried": self.retried,
            "workers_started": self.workers_started,
            "worker_cpu_s": round(self.cpu_s, 3),
            "video_hours": round(video_s / 3600, 6),
            "video_hours_per_hour": round(video_s / took, 3) if video_s and took > 0 else None,
            "cpu_s_per_video_minute": round(self.cpu_s / video_s * 60, 3) if video_s else None,
        }
