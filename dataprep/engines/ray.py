"""Ray actors as workers: on a local cluster of their own, or on the cluster at a given address.

The actors run the same call on the same items as every other engine; Ray only decides where. The pool grows to the
work that waits as far as the cluster has room, and asks the cluster's autoscaler for more by actors that are pending;
it shrinks when there is less work than workers. One item at a time is with a worker, and its reply is fetched before
the next: what the object store holds does not grow with the work.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time
from collections.abc import Collection
from typing import Any

from dataprep.engines.calls import Function, Reply
from dataprep.engines.limits import Usage, WorkLimits
from dataprep.engines.ray_actor import Host, fingerprint
from dataprep.engines.schedule import Died
from m4v.core.errors import InfrastructureError, InputError

START_S = 300.0  # without any worker for so long, the cluster is taken to have no room
IDLE_S = 60.0  # a worker without work is given back after this
MAX_FAILED_STARTS = 8  # in a row
_LOOK_EVERY_S = 1.0
_OBJECT_STORE_BYTES = 256 * 1024 * 1024
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


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
    except Exception as error:
        # A node that does not come up within Ray's half a minute is a plain Exception there; others are what they say.
        if type(error) is not Exception and not isinstance(error, ConnectionError | RuntimeError | ValueError):
            raise
        raise InfrastructureError(
            f"Ray did not start: {error}", value=address, next_step="check ray_address, or use engine: process"
        ) from error
    return ray


class _Seat:
    """One actor, pending until its `ready` call has answered."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.up = actor, False
        self.ready = actor.ready.remote()
        self.task: Any = None
        self.idle_since = time.monotonic()


class RayPool:
    """`WorkerPool` of Ray actors of one CPU, and of `gpus` of a GPU, each."""

    enforces_limits = True

    def __init__(self, workers: int, address: str | None, *, gpus: float = 0.0, preload: tuple[str, ...] = ()) -> None:
        self.slots = workers
        self._path_before = os.environ.get("PYTHONPATH")
        self._ray = _connect(address, workers)
        self._address, self._gpus, self._preload = address, gpus, preload
        # Spread out, the loss of a node costs few workers.
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor_class = self._ray.remote(**options, scheduling_strategy="SPREAD")(Host)
        self._seats: dict[int, _Seat] = {}
        self._function: tuple[Function, bytes] | None = None
        self._started = self._failed_starts = 0
        self._last_up = time.monotonic()

    def scale(self, wanted: int) -> None:
        wanted = min(wanted, self.slots)
        if wanted and not self._seats:
            self._last_up = time.monotonic()  # the wait for a first worker begins
        for slot in range(self.slots):
            if len(self._seats) >= wanted:
                break
            if slot not in self._seats:
                self._seats[slot] = _Seat(self._actor_class.remote(self._preload))
        self._shrink(wanted)

    def _shrink(self, wanted: int) -> None:
        """Pending actors too many go at once, idle ones after a while: the next map may want them."""
        now = time.monotonic()
        for slot, seat in sorted(self._seats.items(), reverse=True):
            if len(self._seats) <= wanted:
                return
            if seat.task is None and (not seat.up or now - seat.idle_since > IDLE_S):
                self.kill(slot)

    def free_slot(self, busy: Collection[int]) -> int | None:
        return next((slot for slot, seat in sorted(self._seats.items()) if seat.up and slot not in busy), None)

    def census(self) -> tuple[int, int]:
        return sum(seat.up for seat in self._seats.values()), self._started

    def submit(self, slot: int, function: Function, item: Any, limits: WorkLimits) -> None:
        if self._function is None or self._function[0] is not function:
            self._function = function, pickle.dumps(function)
        seat = self._seats[slot]
        seat.task = seat.actor.run.remote(self._function[1], pickle.dumps(item), limits)

    def wait(self, busy: Collection[int], timeout_s: float | None) -> list[tuple[int, Reply | Died]]:
        tasks = {self._seats[slot].task: slot for slot in busy}
        coming = {seat.ready: slot for slot, seat in self._seats.items() if not seat.up}
        references = [*tasks, *coming]
        if not references:
            time.sleep(_LOOK_EVERY_S)  # every start failed; the next `scale` tries again
            return []
        look = _LOOK_EVERY_S if timeout_s is None else min(timeout_s, _LOOK_EVERY_S)
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        ready = ready or self._ray.wait(references, num_returns=1, timeout=look)[0]
        for reference in ready:
            if reference in coming:
                self._settle(coming[reference])
        self._check_any_up()
        return [(tasks[reference], self._receive(tasks[reference])) for reference in ready if reference in tasks]

    def _settle(self, slot: int) -> None:
        """A pending actor is up, or its start failed."""
        seat = self._seats[slot]
        try:
            theirs = self._ray.get(seat.ready)
        except self._ray.exceptions.RayActorError as error:
            self.kill(slot)
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise InfrastructureError(
                    f"workers on Ray do not start: {_first_line(error)}", value=self._address, where="engine ray",
                    next_step="look at the logs of the cluster's nodes: they need this package and its libraries",
                ) from error  # fmt: skip
            return
        if self._address is not None:
            self._check_same(theirs)
        seat.up, seat.idle_since = True, time.monotonic()
        self._started += 1
        self._failed_starts = 0

    def _check_same(self, theirs: dict[str, str]) -> None:
        ours = fingerprint()
        if other := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            name = other[0]
            raise InfrastructureError(
                f"a Ray node has another {name} ({theirs.get(name)}) than this process ({ours.get(name)})",
                value=self._address, where="engine ray",
                next_step="its bytes might differ: install the same package and libraries on every node",
            )  # fmt: skip

    def _check_any_up(self) -> None:
        now = time.monotonic()
        if any(seat.up for seat in self._seats.values()):
            self._last_up = now
        elif now - self._last_up > START_S:
            share = f" and {self._gpus:g} GPU" if self._gpus else ""
            raise InfrastructureError(
                f"no worker came up on Ray within {START_S:g} s; each needs 1 CPU{share}",
                value={k: v for k, v in self._ray.available_resources().items() if k in ("CPU", "GPU")},
                where="engine ray", next_step="free or add nodes, or ask for less in the profile's resources",
            )  # fmt: skip

    def _receive(self, slot: int) -> Reply | Died:
        seat, errors = self._seats[slot], self._ray.exceptions
        reference, seat.task, seat.idle_since = seat.task, None, time.monotonic()
        try:
            reply: Reply = pickle.loads(self._ray.get(reference))
        except (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError, errors.OutOfMemoryError) as e:
            return Died(_first_line(e), lost=True)
        return reply

    def usage(self, slot: int) -> Usage | None:
        return None  # its host looks at that

    def kill(self, slot: int) -> None:
        seat = self._seats.pop(slot, None)
        if seat is not None:
            self._ray.kill(seat.actor, no_restart=True)

    def close(self) -> None:
        for slot in list(self._seats):
            self.kill(slot)
        self._ray.shutdown()
        if self._path_before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = self._path_before


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
