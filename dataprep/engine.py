"""Engines that map a function over items: in this process, in killable child processes, or on Ray.

Results come in input order and are the same from every engine and any number of workers: the function sees
one item, single-threaded libraries and nothing of its neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from dataprep.engines.calls import Returned, call, prepare_worker, result_of, single_threaded
from dataprep.engines.limits import WorkLimits
from dataprep.engines.meter import Meter
from dataprep.engines.process import ProcessPool
from dataprep.engines.ray import RayPool
from dataprep.engines.schedule import WorkerPool, ordered_map
from dataprep.quarantine import ItemFailure
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources

__all__ = ["Engine", "InlineEngine", "open_engine", "prepare_worker", "single_threaded"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Engine(Protocol):
    """`map` yields, in input order, `function(item)` or the ItemFailure that stands for it.

    The function must be importable (module level, or `functools.partial` of one). An ItemError that it raises
    becomes an ItemFailure; any other exception is raised here. `timeout_s` (wall clock, for each item) is held
    by killing the worker, so it has no force in the in-process engine. `cpu_s` and `memory_bytes` bound an item's
    processor time and its worker's resident memory in the same way (looked at every quarter of a second, where the
    system has /proc). `total`: how many items there are, where they come from an iterator; for the meter, and so
    that no more workers start than there is work.
    """

    @property
    def meter(self) -> Meter: ...

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
        total: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]: ...


class InlineEngine:
    """Everything in the calling process: no isolation, nothing to start."""

    def __init__(self) -> None:
        self.meter = Meter(workers=1, workers_started=1)

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
        total: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]:
        left = len(items) if isinstance(items, Sized) else total
        for item in items:
            left = None if left is None else left - 1
            self.meter.working, self.meter.waiting = 1, left
            reply = call(function, item)
            self.meter.working = 0
            self.meter.finished += 1
            self.meter.cpu_s += reply.cpu_s if isinstance(reply, Returned) else 0.0
            yield result_of(reply)


class PoolEngine:
    """Items on the workers of a pool, which is opened by the first item: a map over nothing costs nothing."""

    def __init__(self, open_pool: Callable[[], WorkerPool]) -> None:
        self._open_pool = open_pool
        self._pool: WorkerPool | None = None
        self.meter = Meter()

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
        total: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]:
        total = len(items) if isinstance(items, Sized) else total
        if total == 0:
            return
        if self._pool is None:
            self._pool = self._open_pool()
        limits = WorkLimits(timeout_s, cpu_s, memory_bytes)
        yield from ordered_map(self._pool, function, items, limits, total=total, meter=self.meter)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@contextlib.contextmanager
def open_engine(
    resources: Resources, *, isolate: bool = False, preload: tuple[str, ...] = (), on_device: bool = False
) -> Iterator[Engine]:
    """The engine that `resources` name; `isolate` asks for child processes even with one worker.

    `preload`: modules that children find imported already (they must start no threads on import). `on_device`: the
    work uses the device of `resources`, so that workers on Ray take their share of a GPU.

    Raises ConfigError on an unknown engine name.
    """
    if resources.engine not in ("process", "ray"):
        raise ConfigError("unknown engine", value=resources.engine, where="resources", next_step="process or ray")
    if resources.engine == "process" and resources.workers == 1 and not isolate:
        yield InlineEngine()
        return
    if resources.engine == "ray":
        gpus = resources.gpus_per_worker if on_device and resources.device != "cpu" else 0.0
        engine = PoolEngine(lambda: RayPool(resources.workers, resources.ray_address, gpus=gpus, preload=preload))
    else:
        engine = PoolEngine(lambda: ProcessPool(resources.workers, preload))
    try:
        yield engine
    finally:
        engine.close()
