"""Ordered map over killable workers: one item at a time on each, results in input order.

A worker that dies costs its item one retry; a second death, or a time-out, becomes an ItemFailure. A window
bounds how far finished work may run ahead of the oldest unfinished item, so memory stays bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from dataprep.engines.calls import Function, Reply, Returned, result_of
from dataprep.engines.limits import Usage, WorkLimits
from dataprep.quarantine import ItemFailure, Reason

WINDOW_PER_WORKER = 8
_LOOK_EVERY_S = 0.25  # how often processor time and memory of busy workers are looked at
_MIB = 1 << 20


class Died:
    """A worker ended without an answer; `detail` says how."""

    def __init__(self, detail: str) -> None:
        self.detail = detail


class WorkerPool(Protocol):
    """Numbered slots, each with one worker process behind it."""

    slots: int

    def submit(self, slot: int, function: Function, item: Any) -> None:
        """Start `function(item)` on an idle slot, starting its worker if there is none."""

    def wait(self, busy: list[int], timeout_s: float | None) -> list[tuple[int, Reply | Died]]:
        """Answers of at least one of the busy slots, or none when the time is over."""

    def usage(self, slot: int) -> Usage | None:
        """What the slot's worker has used since it started; None where that is not known."""

    def kill(self, slot: int) -> None:
        """End the slot's worker at once; the next submit starts a new one."""

    def close(self) -> None: ...


class _Job:
    def __init__(self, index: int, item: Any) -> None:
        self.index, self.item, self.deaths, self.deadline = index, item, 0, float("inf")
        self.cpu_before = 0.0  # processor time of its worker when it began


def ordered_map(pool: WorkerPool, function: Function, items: Iterable[Any], limits: WorkLimits) -> Iterator[Any]:
    """Yield results in input order; closing the iterator kills what is still running."""
    schedule = _Schedule(pool, function, iter(items), limits)
    try:
        yield from schedule.results()
    finally:
        schedule.abandon()


class _Schedule:
    def __init__(self, pool: WorkerPool, function: Function, items: Iterator[Any], limits: WorkLimits) -> None:
        self._pool, self._function, self._items, self._limits = pool, function, items, limits
        self._retry: deque[_Job] = deque()
        self._busy: dict[int, _Job] = {}
        self._done: dict[int, Any] = {}
        self._submitted = self._yielded = 0
        self._exhausted = False

    def results(self) -> Iterator[Any]:
        while True:
            self._fill()
            while self._yielded in self._done:
                reply = self._done.pop(self._yielded)
                self._yielded += 1
                yield result_of(reply)
                self._fill()
            if not self._busy:
                return
            self._collect()

    def abandon(self) -> None:
        for slot in list(self._busy):
            self._pool.kill(slot)
        self._busy.clear()

    def _fill(self) -> None:
        for slot in range(self._pool.slots):
            if slot in self._busy:
                continue
            job = self._next_job()
            if job is None:
                return
            self._busy[slot] = job
            job.deadline = time.monotonic() + (self._limits.wall_s if self._limits.wall_s is not None else float("inf"))
            used = self._pool.usage(slot) if self._limits.cpu_s is not None else None
            job.cpu_before = used.cpu_s if used is not None else 0.0
            self._pool.submit(slot, self._function, job.item)

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

    def _collect(self) -> None:
        nearest = min(job.deadline for job in self._busy.values())
        timeout = None if nearest == float("inf") else max(0.0, nearest - time.monotonic())
        if self._limits.needs_usage:
            timeout = _LOOK_EVERY_S if timeout is None else min(timeout, _LOOK_EVERY_S)
        for slot, answer in self._pool.wait(list(self._busy), timeout):
            job = self._busy.pop(slot)
            if isinstance(answer, Died):
                self._pool.kill(slot)
                self._after_death(job, answer)
            else:
                self._done[job.index] = answer
        now = time.monotonic()
        for slot, job in list(self._busy.items()):
            failure = self._over_limit(slot, job, now)
            if failure is not None:
                del self._busy[slot]
                self._pool.kill(slot)
                self._done[job.index] = Returned(failure)

    def _over_limit(self, slot: int, job: _Job, now: float) -> ItemFailure | None:
        limits = self._limits
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
        job.deaths += 1
        if job.deaths == 1:
            self._retry.append(job)
        else:
            self._done[job.index] = Returned(ItemFailure(Reason.WORKER_DIED, f"twice: {answer.detail}"))
