"""When to ask again: backoff by the class of failure, and a pause for everybody where the endpoint asks for one."""

from __future__ import annotations

import threading
import time

from m4v.core import rng

_FIRST_S = 0.5


class Stopped(Exception):
    """The run is ending: no further request is sent."""


class Gate:
    """Threads pass it before each request; `pause` holds all of them, `stop` turns them away."""

    def __init__(self, max_backoff_s: float) -> None:
        self._max_s, self._stop, self._lock = max_backoff_s, threading.Event(), threading.Lock()
        self._until = 0.0

    def stop(self) -> None:
        self._stop.set()

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._until = max(self._until, time.monotonic() + min(seconds, self._max_s))

    def enter(self) -> None:
        """Wait while paused; raises Stopped."""
        while not self._stop.is_set():
            with self._lock:
                left = self._until - time.monotonic()
            if left <= 0:
                return
            self._stop.wait(left)
        raise Stopped

    def rest(self, attempt: int, key: str) -> None:
        """Wait after failure number `attempt` (from 0): twice as long each time, spread by key. Raises Stopped."""
        spread = float(rng.generator(0, "backoff", key, attempt).uniform(0.5, 1.0))
        if self._stop.wait(min(self._max_s, _FIRST_S * 2**attempt) * spread):
            raise Stopped
