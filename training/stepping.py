"""One step of a stage: forward, backward, and an update unless the guard says otherwise.

A step without an update changes neither weights, moments nor averages, and its row of the metrics says why.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from training.clock import StepClock
from training.config import TrainConfig
from training.ema import Ema
from training.engine import Engine
from training.guard import SKIPPED, Guard, Verdict
from training.loader import Batch
from training.metrics import StepMeans, StepSums, finite
from training.objective import Objective, Terms
from training.order import DataOrder
from training.ranks import leads
from training.saved import Row


@dataclass(frozen=True)
class Outcome:
    """The step's row, what the guard said, whether any rank was asked to stop, and this rank's samples whose loss
    is not finite."""

    row: Row
    verdict: Verdict
    drain: bool
    broken: tuple[str, ...] = ()

    @property
    def updated(self) -> bool:
        return SKIPPED not in self.row


@dataclass
class Stepper:
    """Takes the steps of one rank, in order. `left_out`: steps whose data a roll-back leaves out, and why."""

    config: TrainConfig
    order: DataOrder
    objective: Objective
    engine: Engine
    ema: Ema | None
    guard: Guard
    left_out: Mapping[int, str]
    before_update: Callable[[], None]  # called when weights are about to change

    def take(self, step: int, batches: Sequence[Batch], clock: StepClock, drain: bool) -> Outcome:
        """Take step `step`, of which this rank has `batches`; `drain` is its wish to stop."""
        if step in self.left_out:
            means = StepSums(self.objective.names, self.engine.device).reduce(drain)
            row = self._row(step, None, None, means, self.left_out[step])
            return Outcome(row, Verdict(), means.drain)
        sums, broken = self._gradients(step, batches, clock)
        means = sums.reduce(drain)
        norm, verdict = self._update(step, means, clock)
        skipped = "" if verdict.action == "take" else verdict.reason
        row = self._row(step, means.loss, norm, means, skipped)
        return Outcome(row, verdict, means.drain, tuple(broken))

    def _gradients(self, step: int, batches: Sequence[Batch], clock: StepClock) -> tuple[StepSums, list[str]]:
        """Forward and backward of every pack. One that is not finite goes through all the same: the ranks meet in
        every collective, and the guard stops its update. Numbers are read behind the last pack: before, each would
        make the program wait for a GPU instead of keeping it busy."""
        size, sums = self.order.step_size(step), StepSums(self.objective.names, self.engine.device)
        settings, rank = self.config.engine, self.engine.rank
        counted = leads(settings, rank) and (rank == 0 or not settings.fixed_order)  # else all ranks have all packs
        done: list[Terms] = []
        for batch in batches:
            with clock.part("forward"):
                terms = self.objective(self.engine, batch, size)
            with clock.part("backward"):
                self.engine.backward(terms.loss / size.samples)
            done.append(terms.after_backward())
        losses = torch.stack([terms.loss for terms in done]).tolist() if done else []
        broken: list[str] = []
        for batch, loss in zip(batches, losses, strict=True):
            broken += () if math.isfinite(loss) else batch.pack.samples
        if counted:
            for terms in done:
                sums.add(terms)
        return sums, broken

    def _update(self, step: int, means: StepMeans, clock: StepClock) -> tuple[float, Verdict]:
        """The global gradient norm, and the verdict that the update followed."""
        media = self.order.media(step)

        def accept(norm: float) -> bool:
            return self.guard.judge(media, means.loss, norm).action == "take"

        with clock.part("save"):
            self.before_update()
        with clock.part("optimizer"):
            norm = self.engine.step(self.config.optimizer.lr_at(step, self.config.steps), accept)
            verdict = self.guard.judge(media, means.loss, norm)
            if verdict.action == "take" and self.ema is not None:
                self.ema.update(step)
        return norm, verdict

    def _row(self, step: int, loss: float | None, norm: float | None, means: StepMeans, skipped: str) -> Row:
        tokens = 0 if step in self.left_out else self.order.step_size(step).tokens
        row: Row = {
            "step": step, "loss": finite(loss), "grad_norm": finite(norm),
            "lr": self.config.optimizer.lr_at(step, self.config.steps), "tokens": tokens, "samples": means.samples,
            "media": self.order.media(step), **means.named,
        }  # fmt: skip
        if skipped:
            row[SKIPPED] = skipped
        self.guard.add(row)
        return row


@contextmanager
def settled_heap() -> Iterator[None]:
    """Around a training loop: spares the garbage collector the objects that are there already, which it would go
    through again and again, since every pack makes many new ones. They are its own again afterwards."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def suspects(outcome: Outcome, order: DataOrder, step: int, world_size: int) -> list[str]:
    """Samples to look at after a step that went wrong: of the packs whose loss is not finite on any rank, or else all
    of the step. Every rank calls it."""
    found: list[tuple[str, ...]] = [()] * world_size
    distributed.all_gather_object(found, outcome.broken)
    broken = {sample for samples in found for sample in samples}
    return sorted(broken or {sample for pack in order.packs(step) for sample in pack.samples})
