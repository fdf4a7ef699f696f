"""Ordered map over killable workers: one item at a time on each, results in input order.

A worker that dies costs its item one retry; a second death, or a time-out, becomes an ItemFailure. A worker that is
lost with its machine is no fault of the item, which goes to another. A window bounds how far finished work may run
ahead of the oldest unfinished item, so memory stays bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Protocol

from dataprep.engines.calls import Function, Reply, Returned, result_of
from dataprep.engines.limits import Usage, WorkLimits
from dataprep.engines.meter import Meter
from dataprep.quarantine import ItemFailure, Reason

WINDOW_PER_WORKER = 8
MAX_DEATHS = 2
MAX_LOSSES = 5  # an item that takes a whole machine with it each time must end too
_LOOK_EVERY_S = 0.25  # how often processor time and memory of busy workers are looked at
_MIB = 1 << 20


class Died:
    """A worker ended without an answer; `detail` says how. `lost`: from outside, with its machine or its host process,
    not by the work."""

    def __init__(self, detail: str, *, lost: bool = False) -> None:
        self.detail, self.lost = detail, lost


class WorkerPool(Protocol):
    """Numbered slots, each with one worker behind it. `enforces_limits`: the workers hold the limits of `submit`
    themselves, near the work; otherwise the schedule watches them."""

    slots: int
    enforces_limits: bool

    def scale(self, wanted: int) -> None:
        """Items that want a worker now, or soon: the pool may grow to as many, or shrink."""

    def free_slot(self, busy: Collection[int]) -> int | None:
        """A slot that can begin an item at once; None while all are busy or still coming up."""

    def submit(self, slot: int, function: Function, item: Any, limits: WorkLimits) -> None:
        """Start `function(item)` on a free slot."""

    def wait(self, busy: Collection[int], timeout_s: float | None) -> list[tuple[int, Reply | Died]]:
        """Answers of busy slots; none when the time is over, or when a worker came up in the meantime."""

    def usage(self, slot: int) -> Usage | None:
        """What the slot's worker has used since it started; None where that is not known."""

    def kill(self, slot: int) -> None:
        """End the slot's worker at once; the next submit starts a new one."""

    def census(self) -> tuple[int, int]:
        """Workers up now, and workers started so far."""

    def close(self) -> None: ...


class _Job:
    def __init__(self, index: int, item: Any) -> None:
        self.index, self.item, self.deaths, self.losses, self.deadline = index, item, 0, 0, float("inf")
        self.cpu_before = 0.0  # processor time of its worker when it began


def ordered_map(
    pool: WorkerPool,
    function: Function,
    items: Iterable[Any],
    limits: WorkLimits,
    *,
    total: int | None = None,
    meter: Meter | None = None,
) -> Iterator[Any]:
    """Yield results in input order; closing the iterator kills what is still running. `total`: how many items there
    are, where that is known."""
    for reply in replies(pool, function, items, limits, total=total, meter=meter):
        yield result_of(reply)


def replies(
    pool: WorkerPool,
    function: Function,
    items: Iterable[Any],
    limits: WorkLimits,
    *,
    total: int | None = None,
    meter: Meter | None = None,
) -> Iterator[Reply]:
    """As `ordered_map`, with what a function raised carried instead of raised."""
    schedule = _Schedule(pool, function, iter(items), limits, total, meter or Meter())
    try:
        yield from schedule.replies()
    finally:
        schedule.abandon()


class _Schedule:
    def __init__(
        self,
        pool: WorkerPool,
        function: Function,
        items: Iterator[Any],
        limits: WorkLimits,
        total: int | None,
        meter: Meter,
    ) -> None:
        self._pool, self._function, self._items, self._total, self._meter = pool, function, items, total, meter
        self._limits, self._watched = limits, WorkLimits() if pool.enforces_limits else limits
        self._retry: deque[_Job] = deque()
        self._busy: dict[int, _Job] = {}
        self._done: dict[int, Reply] = {}
        self._submitted = self._yielded = 0
        self._exhausted = False

    def replies(self) -> Iterator[Reply]:
        while True:
            self._fill()
            while self._yielded in self._done:
                reply = self._done.pop(self._yielded)
                self._yielded += 1
                yield reply
                self._fill()
            if self._exhausted and not self._busy and not self._retry:
                return
            self._collect()

    def abandon(self) -> None:
        for slot in list(self._busy):
            self._pool.kill(slot)
        self._busy.clear()
        self._tell()

    def _fill(self) -> None:
        self._pool.scale(len(self._busy) + len(self._retry) + self._left())
        while (slot := self._pool.free_slot(self._busy)) is not None:
            job = self._next_job()
            if job is None:
                break
            self._begin(slot, job)
        self._tell()

    def _left(self) -> int:
        """Items that have not begun, as far as that is known: else enough for every slot."""
        if self._exhausted:
            return 0
        return self._pool.slots if self._total is None else max(0, self._total - self._submitted)

    def _begin(self, slot: int, job: _Job) -> None:
        self._busy[slot] = job
        watched = self._watched
        job.deadline = time.monotonic() + (watched.wall_s if watched.wall_s is not None else float("inf"))
        used = self._pool.usage(slot) if watched.cpu_s is not None else None
        job.cpu_before = used.cpu_s if used is not None else 0.0
        self._pool.submit(slot, self._function, job.item, self._limits)

    def _next_job(self) -> _Job | None:
        if self._retry:
            return self._retry.popleft()
        if self._exhausted or self._submitted - self._yielded >= WINDOW_PER_WORKER * self._pool.slots:
            return None
        try:
            job = _Job(self._submitted, next(self._items))
        except StopIteration:
            self._exhausted = True
            return None
        self._submitted += 1
        return job

    def _tell(self) -> None:
        meter = self._meter
        meter.workers, meter.workers_started = self._pool.census()
        meter.working = len(self._busy)
        known = self._exhausted or self._total is not None
        meter.waiting = self._left() + len(self._retry) if known else None

    def _collect(self) -> None:
        nearest = min((job.deadline for job in self._busy.values()), default=float("inf"))
        timeout = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
        if self._watched.needs_usage:
            timeout = _LOOK_EVERY_S if timeout is None else min(timeout, _LOOK_EVERY_S)
        for slot, answer in self._pool.wait(list(self._busy), timeout):
            job = self._busy.pop(slot)
            if isinstance(answer, Died):
                self._pool.kill(slot)
                self._after_death(job, answer)
            else:
                self._finish(job, answer)
        now = time.monotonic()
        for slot, job in list(self._busy.items()):
            failure = self._over_limit(slot, job, now)
            if failure is not None:
                del self._busy[slot]
                self._pool.kill(slot)
                self._finish(job, Returned(failure))

    def _finish(self, job: _Job, reply: Reply) -> None:
        self._done[job.index] = reply
        self._meter.finished += 1
        self._meter.cpu_s += reply.cpu_s if isinstance(reply, Returned) else 0.0

    def _over_limit(self, slot: int, job: _Job, now: float) -> ItemFailure | None:
        limits = self._watched
        if job.deadline <= now:
            return ItemFailure(Reason.TIMEOUT, f"no answer within {limits.wall_s:g} s")
        used = self._pool.usage(slot) if limits.needs_usage else None
        if used is None:
            return None
        if limits.cpu_s is not None and used.cpu_s - job.cpu_before > limits.cpu_s:
            return ItemFailure(Reason.TIMEOUT, f"no answer within {limits.cpu_s:g} s of processor time")
        if limits.memory_bytes is not None and used.memory_bytes > limits.memory_bytes:
            return ItemFailure(Reason.OUT_OF_MEMORY, f"more than {limits.memory_bytes // _MIB} MiB")
        return None

    def _after_death(self, job: _Job, answer: Died) -> None:
        job.losses += answer.lost
        job.deaths += not answer.lost
        if job.deaths < MAX_DEATHS and job.losses < MAX_LOSSES:
            self._meter.retried += 1
            self._retry.append(job)
            return
        often = f"lost {job.losses} times" if answer.lost else "twice"
        self._finish(job, Returned(ItemFailure(Reason.WORKER_DIED, f"{often}: {answer.detail}")))
