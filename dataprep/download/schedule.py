"""When which file is fetched: limits of rate and connections, altogether and by host, and waits between tries.

Threads take tasks that may begin now; a host that is slow, limited or told us to wait holds nobody else up.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dataprep.download.config import DownloadConfig
from dataprep.download.outcome import WantedFile

WINDOW = 4096  # tasks in memory
_IDLE_S = 0.5


@dataclass
class Task:
    """A wanted file and how often it was tried."""

    wanted: WantedFile
    attempts: int = 0
    host: str = ""

    def __post_init__(self) -> None:
        try:
            self.host = (urlsplit(self.wanted.url).hostname or "").lower()
        except ValueError:
            self.host = ""


class Bucket:
    """Lets `rate` units a second pass, and up to one second's worth at once (at least one unit)."""

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._free_at = clock()

    def wait_s(self) -> float:
        """Seconds until the next unit may pass."""
        return 0.0 if self._rate is None else max(0.0, self._free_at - self._clock())

    def take(self, units: float = 1.0) -> None:
        """Pass `units` now, whatever `wait_s` says: who comes next waits for them."""
        if self._rate is not None:
            burst = max(0.0, 1.0 - 1.0 / self._rate) if self._rate > 1 else 0.0
            self._free_at = max(self._free_at, self._clock() - burst) + units / self._rate


class Bandwidth:
    """A byte rate shared by threads."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bucket, self._lock = Bucket(bytes_per_s), threading.Lock()

    def spend(self, size: int) -> None:
        with self._lock:
            wait = self._bucket.wait_s()
            self._bucket.take(size)
        if wait > 0:
            time.sleep(wait)


@dataclass
class _Host:
    bucket: Bucket
    ready: deque[Task] = field(default_factory=deque)
    active: int = 0
    waiting: int = 0  # tasks in the heap of delays
    not_before: float = 0.0
    queued: bool = False  # stands in the round of hosts


class Schedule:
    """Tasks by host. `add` while there is `room`, threads `take` and `finish`; `close` ends them."""

    def __init__(self, config: DownloadConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._changed = threading.Condition()
        self._hosts: dict[str, _Host] = {}
        self._round: deque[str] = deque()  # hosts with ready tasks
        self._delayed: list[tuple[float, int, Task]] = []
        self._numbers = itertools.count()
        self._all = Bucket(config.rate_per_s, clock)
        self._held = 0
        self._closed = False

    @property
    def room(self) -> int:
        with self._changed:
            return WINDOW - self._held

    @property
    def held(self) -> int:
        """Tasks that wait or are being fetched."""
        with self._changed:
            return self._held

    def add(self, task: Task) -> None:
        with self._changed:
            self._held += 1
            self._ready(task)
            self._changed.notify()

    def take(self) -> Task | None:
        """The next task that may begin now, waiting for one; None when closed."""
        with self._changed:
            while not self._closed:
                wait = self._wake_delayed()
                if (waited := self._all.wait_s()) > 0:
                    self._changed.wait(min(waited, _IDLE_S))
                    continue
                task, soonest = self._pick()
                if task is not None:
                    return task
                self._changed.wait(max(0.001, min(wait, soonest, _IDLE_S)))
            return None

    def pause(self, task: Task, seconds: float) -> None:
        """Ask nothing of a taken task's host for a while."""
        with self._changed:
            host = self._hosts[task.host]
            host.not_before = max(host.not_before, self._clock() + seconds)

    def finish(self, task: Task, *, retry_in_s: float | None = None) -> None:
        """Give a taken task back: done with, or to be tried again after a while."""
        with self._changed:
            host = self._hosts[task.host]
            host.active -= 1
            now = self._clock()
            if retry_in_s is None:
                self._held -= 1
            else:
                host.waiting += 1
                heapq.heappush(self._delayed, (now + retry_in_s, next(self._numbers), task))
            if not host.active and not host.ready and not host.waiting and host.not_before <= now:
                del self._hosts[task.host]  # millions of hosts pass by
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ready(self, task: Task) -> None:
        host = self._hosts.get(task.host)
        if host is None:
            host = self._hosts[task.host] = _Host(Bucket(self._config.host_rate_per_s, self._clock))
        host.ready.append(task)
        if not host.queued:
            host.queued = True
            self._round.append(task.host)

    def _wake_delayed(self) -> float:
        """Make tasks ready whose wait is over; returns seconds until the next one's is."""
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            task = heapq.heappop(self._delayed)[2]
            self._hosts[task.host].waiting -= 1
            self._ready(task)
        return self._delayed[0][0] - now if self._delayed else _IDLE_S

    def _pick(self) -> tuple[Task | None, float]:
        """A task of the next host in the round that may be asked, else the seconds until one may."""
        now, soonest = self._clock(), _IDLE_S
        for _ in range(len(self._round)):
            name = self._round.popleft()
            host = self._hosts[name]
            wait = max(host.not_before - now, host.bucket.wait_s())
            if host.active < self._config.per_host and wait <= 0:
                host.bucket.take()
                self._all.take()
                host.active += 1
                task = host.ready.popleft()
                host.queued = bool(host.ready)
                if host.queued:
                    self._round.append(name)
                return task, 0.0
            self._round.append(name)
            if wait > 0:
                soonest = min(soonest, wait)
        return None, soonest
