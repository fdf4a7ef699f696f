"""Engines that map a function over items: in this process, in killable child processes, or on Ray.

Results come in input order and are the same from every engine and any number of workers: the function sees
one item, single-threaded libraries and nothing of its neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from dataprep.engines.calls import call, prepare_worker, result_of, single_threaded
from dataprep.engines.limits import WorkLimits
from dataprep.engines.process import ProcessPool
from dataprep.engines.ray import RayPool
from dataprep.engines.schedule import WorkerPool, ordered_map
from dataprep.quarantine import ItemFailure
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources

__all__ = ["Engine", "open_engine", "prepare_worker", "single_threaded"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Engine(Protocol):
    """`map` yields, in input order, `function(item)` or the ItemFailure that stands for it.

    The function must be importable (module level, or `functools.partial` of one). An ItemError that it raises
    becomes an ItemFailure; any other exception is raised here. `timeout_s` (wall clock, for each item) is held
    by killing the worker, so it has no force in the in-process engine. `cpu_s` and `memory_bytes` bound an item's
    processor time and its worker's resident memory in the same way, on workers of this machine (looked at every
    quarter of a second, where the system has /proc).
    """

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]: ...


class InlineEngine:
    """Everything in the calling process: no isolation, nothing to start."""

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]:
        for item in items:
            yield result_of(call(function, item))


class PoolEngine:
    """Items on the workers of a pool, which is opened by the first item: a map over nothing costs nothing."""

    def __init__(self, open_pool: Callable[[], WorkerPool]) -> None:
        self._open_pool = open_pool
        self._pool: WorkerPool | None = None

    def map(
        self,
        function: Callable[[ItemT], ResultT],
        items: Iterable[ItemT],
        *,
        timeout_s: float | None = None,
        cpu_s: float | None = None,
        memory_bytes: int | None = None,
    ) -> Iterator[ResultT | ItemFailure]:
        waiting = list(items) if isinstance(items, list | tuple) else items
        if isinstance(waiting, list) and not waiting:
            return
        if self._pool is None:
            self._pool = self._open_pool()
        yield from ordered_map(self._pool, function, waiting, WorkLimits(timeout_s, cpu_s, memory_bytes))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@contextlib.contextmanager
def open_engine(resources: Resources, *, isolate: bool = False, preload: tuple[str, ...] = ()) -> Iterator[Engine]:
    """The engine that `resources` name; `isolate` asks for child processes even with one worker.

    `preload`: modules that children find imported already (they must start no threads on import).

    Raises ConfigError on an unknown engine name.
    """
    if resources.engine not in ("process", "ray"):
        raise ConfigError("unknown engine", value=resources.engine, where="resources", next_step="process or ray")
    if resources.engine == "process" and resources.workers == 1 and not isolate:
        yield InlineEngine()
        return
    if resources.engine == "ray":
        engine = PoolEngine(lambda: RayPool(resources.workers, resources.ray_address))
    else:
        engine = PoolEngine(lambda: ProcessPool(resources.workers, preload))
    try:
        yield engine
    finally:
        engine.close()
