"""Runs stage processes under torchrun for tests: `torchrun training_faults.py REQUEST...`, one after the other.

`M4V_TEST_FAULT` = `POINT:STEP`, or several joined by `+`, makes ranks SIGKILL themselves there. `step`: after the
update of STEP. Of the save at STEP: `copy`, in its snapshot; `half`, in the middle of rank 0's file; `file`, between a
rank's file and its word that it is there; `shard`, between all files and the manifest; `retain`, when retention has
deleted the manifest of an older save and not its files; `commit`, right after. `export`: while the checkpoint is
written. `slow` lets the save at STEP never end. `nan` and `spike` spoil the loss of STEP; `drain` asks an attempt 0 to
stop after it.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, distributed

from m4v.core.storage import Storage
from pipelines.stage_process import main
from training import export, state
from training.exposure import DebugLog
from training.objective import Terms
from training.snapshot import Snapshot
from training.state import SaveManifest, StateStore
from training.stepping import Stepper
from training.tensor_file import Written
from training.trainer import Trainer


def die(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: type, name: str, when: Callable[..., bool], act: Callable[..., object] = die) -> None:
    """Let `act` happen before a method, when its arguments are so."""
    method = getattr(owner, name)

    def changed(self: Any, *arguments: Any) -> Any:
        if when(self, *arguments):
            act()
        return method(self, *arguments)

    setattr(owner, name, changed)


def after(owner: type, name: str, when: Callable[..., bool]) -> None:
    """Die after a method, when its arguments are so."""
    method = getattr(owner, name)

    def changed(self: Any, *arguments: Any) -> Any:
        result = method(self, *arguments)
        return die() if when(self, *arguments) else result

    setattr(owner, name, changed)


class Spoilt:
    """An objective whose loss is wrong by a factor."""

    def __init__(self, objective: Any, factor: float) -> None:
        self.names, self._objective, self._factor = objective.names, objective, factor

    def __call__(self, *arguments: Any) -> Any:
        terms = self._objective(*arguments)
        return Terms.of(terms.loss * self._factor, terms.flow * self._factor, terms.samples, terms.logged)


def spoil_loss(at: int, factor: float) -> None:
    """Let the losses of step `at` be wrong by a factor, on every rank and whenever it is taken."""
    owner: Any = Stepper
    method = owner._gradients

    def changed(self: Any, step: int, *arguments: Any) -> Any:
        objective = self.objective
        if step == at:
            self.objective = Spoilt(objective, factor)
        try:
            return method(self, step, *arguments)
        finally:
            self.objective = objective

    owner._gradients = changed


def drained(trainer: Trainer) -> bool:
    """Ask an attempt 0 to stop."""
    if not trainer.context.request.attempt_id.strip("0"):
        trainer.context.request_drain()
    return True


def leave_half(at: int) -> None:
    module: Any = state
    write_tensors = module.write_tensors

    def half(storage: Storage, path: str, tensors: Mapping[str, Tensor]) -> Written:
        written: Written = write_tensors(storage, path, tensors)
        if path.startswith(f"saves/{at:010d}") and "rank-00000" in path:
            file = storage.local_root / path
            file.write_bytes(file.read_bytes()[: written.size_bytes // 2])
            die()
        return written

    module.write_tensors = half


def plant(point: str, at: int) -> None:
    def of_step(_: StateStore, step: int, *rest: object) -> bool:
        return step == at

    def of_manifest(_: StateStore, manifest: SaveManifest) -> bool:
        return manifest.step == at

    if point == "step":
        after(DebugLog, "write", lambda _, step, *rest: step == at)
    elif point == "copy":
        remaining = iter(range(at))  # `at` counts snapshots here, from 0
        before(Snapshot, "copy", lambda *_: next(remaining, None) is None)
    elif point == "half":
        leave_half(at)
    elif point == "file":
        before(StateStore, "report", of_step)
    elif point == "slow":
        before(StateStore, "report", of_step, lambda: time.sleep(1e6))
    elif point == "shard":
        before(StateStore, "commit", of_manifest)
    elif point == "retain":
        after(Storage, "delete", lambda _, path: path.endswith(state.MANIFEST) and path < f"saves/{at:010d}")
    elif point == "commit":
        after(StateStore, "commit", of_manifest)
    elif point in ("nan", "spike"):
        spoil_loss(at, math.nan if point == "nan" else 1e4)
    elif point == "drain":
        before(Trainer, "_settle", lambda trainer, step, _: step == at and drained(trainer), lambda: None)
    elif point == "export":
        module: Any = export
        module.parse_rows = die  # weights are written, numbers of the run are not
    else:
        raise ValueError(point)


if __name__ == "__main__":
    if fault := os.environ.get("M4V_TEST_FAULT"):
        for one in fault.split("+"):
            name, _, step = one.partition(":")
            plant(name, int(step or 0))
    if len(sys.argv) > 2:  # DeepSpeed keeps the groups it was first given
        distributed.destroy_process_group = lambda: None
    codes = [main([path]) for path in sys.argv[1:]]
    sys.stdout.flush()
    os._exit(max(codes))
