"""Ray actors as workers: on a local cluster of their own, or on the cluster at a given address.

The actors run the same call on the same items as every other engine; Ray only decides where.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from dataprep.engines.calls import Function, Reply, call, prepare_worker
from dataprep.engines.limits import Usage
from dataprep.engines.schedule import Died
from m4v.core.errors import InfrastructureError, InputError

_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


class _Actor:
    """Runs items one after another in its own process."""

    def __init__(self) -> None:
        prepare_worker()

    def run(self, function: Function, item: Any) -> Reply:
        return call(function, item)


def _connect(address: str | None, workers: int) -> Any:
    """Import and initialise Ray; returns the module."""
    os.environ.update(_QUIET)
    try:
        import ray
    except ImportError:
        raise InputError(
            "the ray engine needs Ray", next_step="pip install 'm4v-pipeline[ray]', or engine: process"
        ) from None
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            # Local workers must import what this process can import.
            os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InfrastructureError(
            f"Ray did not start: {error}", value=address, next_step="check ray_address, or use engine: process"
        ) from error
    return ray


class RayPool:
    """`WorkerPool` of Ray actors, one CPU each."""

    def __init__(self, workers: int, address: str | None) -> None:
        self.slots = workers
        self._path_before = os.environ.get("PYTHONPATH")
        self._ray = _connect(address, workers)
        self._actor_class = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}
        self._functions: dict[int, Any] = {}

    def submit(self, slot: int, function: Function, item: Any) -> None:
        if slot not in self._actors:
            self._actors[slot] = self._actor_class.remote()
        if id(function) not in self._functions:
            self._functions = {id(function): (function, self._ray.put(function))}
        reference = self._functions[id(function)][1]
        self._pending[slot] = self._actors[slot].run.remote(reference, item)

    def wait(self, busy: list[int], timeout_s: float | None) -> list[tuple[int, Reply | Died]]:
        slots = {self._pending[slot]: slot for slot in busy}
        ready, _ = self._ray.wait(list(slots), num_returns=1, timeout=timeout_s)
        return [(slots[reference], self._receive(reference)) for reference in ready]

    def _receive(self, reference: Any) -> Reply | Died:
        try:
            reply: Reply = self._ray.get(reference)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.WorkerCrashedError) as error:
            return Died(type(error).__name__)
        except self._ray.exceptions.OutOfMemoryError:
            return Died("out of memory")
        return reply

    def usage(self, slot: int) -> Usage | None:
        return None  # on another machine, where Ray's own monitor watches the memory

    def kill(self, slot: int) -> None:
        actor = self._actors.pop(slot, None)
        self._pending.pop(slot, None)
        if actor is not None:
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        for slot in list(self._actors):
            self.kill(slot)
        self._ray.shutdown()
        if self._path_before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = self._path_before
