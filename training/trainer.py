"""The loop of a training stage: draw, step, record, save, drain.

The engine computes, the order decides what is seen; `Trainer` holds what a rank carries from step to step.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from m4v.core.errors import Drained, NeedsHuman
from m4v.core.stage import StageContext
from training.clock import StepClock
from training.config import TrainConfig
from training.ema import Ema
from training.engine import Engine
from training.exposure import DebugLog
from training.guard import SKIPPED, RolledBack, steps_to_leave_out
from training.hardware import StepCosts, memory_in_use
from training.heartbeat import Pulse
from training.loader import Batch, Collator
from training.metrics import Speed
from training.monitor import Monitor
from training.order import DataOrder
from training.prefetch import Prefetcher
from training.ranks import leads, pack_rank
from training.reward.probe import Probe
from training.reward.watch import Alarm, Watch, WatchFinished
from training.saved import Kind, Row, SaveManifest, Shard
from training.saving import DrainClock, Saver, is_due, is_permanent, record_save
from training.stepping import Outcome, Stepper, settled_heap, suspects
from training.validation import Validator

PREFETCH_STEPS = 2
_log = logging.getLogger(__name__)


def shards_of(engine: Engine, ema: Ema | None) -> list[Shard]:
    """The engine's fragments with their averages."""
    fragments = engine.fragments()
    averages = ema.averages if ema is not None else [None] * len(fragments)
    return [
        Shard(f.name, f.offset, f.master, f.moments, average, f.primary)
        for f, average in zip(fragments, averages, strict=True)
    ]


@dataclass
class Trainer:
    """One rank of a stage run. `step` steps are finished."""

    context: StageContext
    config: TrainConfig
    order: DataOrder
    collate: Collator
    stepper: Stepper
    engine: Engine
    ema: Ema | None
    saver: Saver
    pulse: Pulse
    step: int
    validator: Validator | None = None
    watch: Watch | None = None  # of a reward stage
    probe: Probe | None = None  # what the watch asks the model itself
    monitor: Monitor | None = None  # of rank 0
    costs: StepCosts | None = None  # of rank 0, on a GPU whose `peak` operations a second are known
    peak: float | None = None
    rows: list[Row] = field(default_factory=list)  # since the last save
    speed: Speed = field(default_factory=Speed)

    @settled_heap()
    def run(self) -> SaveManifest | None:
        """Train to the last step; rank 0 gets the manifest of the final save.

        Raises Drained after a saved step when a stop was asked for; NeedsHuman or RolledBack as the guard says.
        """
        log = DebugLog.from_environment(self.config.name, self.context.rank)
        workers = self.context.resources.workers
        depth = PREFETCH_STEPS * workers
        prefetch = Prefetcher(self._batches, self.step, self.config.steps, depth, workers=workers)
        drains = DrainClock(lambda: self.context.drain_requested, self.config.drain_deadline_s)
        manifest: SaveManifest | None = None
        if self.config.async_saves and any(is_due(s, self.config) for s in range(self.step + 1, self.config.steps)):
            self.saver.prepare(shards_of(self.engine, self.ema))
        began = time.perf_counter()
        try:
            for step, batches in prefetch:
                waited = time.perf_counter() - began
                self.pulse.enter("step")
                with StepClock(self.engine.device) as clock:
                    outcome = self.stepper.take(step, batches, clock, self.context.drain_requested)
                    self._settle(step, outcome)
                    self._look(outcome.row, clock)
                    if leads(self.config.engine, self.context.rank):
                        log.write(step, self.engine.world_size, consumed(batches, outcome), self._places())
                    self._validate(outcome.row, clock)
                    manifest = self._save_when_due(outcome.drain, clock)
                self._record(outcome, clock, began, waited)
                if outcome.drain and manifest is None:
                    self._leave(drains.deadline)
                began = time.perf_counter()
        finally:
            prefetch.close()
            drains.close()
            self.saver.close()
        return manifest

    def _settle(self, step: int, outcome: Outcome) -> None:
        """Count the step, or leave the loop when the guard wants that. Every rank does the same."""
        if outcome.verdict.action == "roll_back":
            self.saver.finish()  # it is one that may be gone back to
            base = max(s for s in range(step + 1) if s == 0 or is_due(s, self.config))
            left_out = steps_to_leave_out(step, base, self.config.guard.rewind)
            raise RolledBack(step, left_out, outcome.verdict.reason)
        if outcome.verdict.action == "stop":
            samples = suspects(outcome, self.order, step, self.context.world_size)
            raise NeedsHuman(
                f"{outcome.verdict.reason} at step {step} of stage {self.config.name!r}; the step was not taken",
                value=samples,
                where="samples of the step",
                next_step="look at the samples with `m4v data inspect`, lower optimizer.lr, or set guard",
            )
        if not outcome.updated and self.context.rank == 0:
            _log.warning("step %d of stage %r took no update: %s", step, self.config.name, outcome.row[SKIPPED])
        self.rows.append(outcome.row)
        self.step = step + 1

    def _look(self, row: Row, clock: StepClock) -> None:
        """Show the step to the watch of a reward stage, at a save with what the model itself answers."""
        if self.probe is not None and self.probe.is_due(self.step):
            self.pulse.enter("validation")
            with clock.part("validation"):
                row.update(self.probe())
        if self.watch is not None and (alarm := self.watch.add(row)) is not None:
            self._heed(alarm, self.watch.on_alarm)

    def _heed(self, alarm: Alarm, action: str) -> None:
        """Say that the reward seems to be hacked, and leave the loop unless that is to be ignored. Every rank does the
        same."""
        record_save(self.context, {"event": "watch_alarm", **dataclasses.asdict(alarm)})
        reasons = "; ".join(alarm.reasons)
        if action == "ignore":
            _log.warning("the hacking watch raised an alarm at step %d: %s", alarm.step, reasons)
            return
        self.saver.finish()  # the good save may be the one that is being written
        if action == "finish" and alarm.good:
            raise WatchFinished(alarm)
        kept = f"the save of step {alarm.good} is good" if alarm.good else "no save is good, only the start model"
        raise NeedsHuman(
            f"the reward of stage {self.config.name!r} seems to be hacked at step {alarm.step}: {reasons}; {kept}",
            where="watch",
            next_step="look at the metrics, then run again with the stage's watch.on_alarm set to finish (the good save"
            " is then its checkpoint) or ignore, or with a lower reward.weight",
        )

    def _validate(self, row: Row, clock: StepClock) -> None:
        """Add the held-out losses to the step's row."""
        if self.validator is not None and self.validator.is_due(self.step):
            self.pulse.enter("validation")
            with clock.part("validation"):
                row.update(self.validator(self.step))

    def _save_when_due(self, drain: bool, clock: StepClock) -> SaveManifest | None:
        """Begin a save that is due; the manifest of the last one."""
        self.pulse.enter("save")
        with clock.part("save"):
            self.saver.check()
            if self.step == self.config.steps:
                return self.save(wait=True)
            if is_due(self.step, self.config) and not drain:
                self.save(wait=not self.config.async_saves)
        return None

    def save(self, *, wait: bool, deadline: float | None = None) -> SaveManifest | None:
        """Begin the save of the state after `step` steps, unless it was begun; every rank takes part. With `wait`
        it exists on return, and rank 0 gets its manifest; None when `deadline` (of `time.monotonic`) came first."""
        if self.saver.begun != self.step:
            kind: Kind = "permanent" if is_permanent(self.step, self.config) else "ephemeral"
            shards = shards_of(self.engine, self.ema)
            if not self.saver.begin(self.step, shards, self.rows, kind, synchronous=wait, deadline=deadline):
                return None
            self.rows = []
        return self.saver.finish(deadline) if wait else None

    def _leave(self, deadline: float) -> NoReturn:
        """The emergency save, and out with exit class 40, whether it was in time or not."""
        self.context.request_drain()  # another rank may have been the one that was asked
        self.save(wait=True, deadline=deadline)
        if self.saver.committed == self.step:
            self.context.check_drain()
        last, limit = self.saver.committed, self.config.drain_deadline_s
        record_save(self.context, {"event": "emergency_save_abandoned", "step": self.step, "stands": last})
        stands = "there is no earlier save" if last is None else f"the save of step {last} stands"
        raise Drained(
            f"stage was drained at step {self.step} and its emergency save was not over after {limit:g} s: {stands}",
            value=self.context.request.stage,
            next_step="m4v run RECIPE resumes from there; a longer drain_deadline_s loses less",
        )  # fmt: skip

    def _batches(self, step: int) -> list[Batch]:
        if step in self.stepper.left_out:
            return []
        return [self.collate(self.order.pack(step, place)).to(self.engine.device) for place in self._places()]

    def _places(self) -> range:
        """This rank's packs of a step."""
        rank, ranks = pack_rank(self.config.engine, self.context.rank, self.context.world_size)
        return range(rank, self.config.order.packs, ranks)

    def _record(self, outcome: Outcome, clock: StepClock, began: float, waited: float) -> None:
        """Speed and memory of the step, for whoever watches."""
        timing = clock.read()
        timing.data, timing.total = waited, time.perf_counter() - began
        tokens, device = int(str(outcome.row["tokens"])), self.engine.device
        self.pulse.finished(self.step, timing.total)
        self.speed.steps.append(timing)
        self.speed.tokens += tokens
        if self.monitor is None:
            return
        self.speed.memory = memory_in_use(device)
        mfu = self._mfu(self.step - 1, timing.total)
        self.speed.mfu += [] if mfu is None else [mfu]
        measured = {name: round(seconds, 6) for name, seconds in vars(timing).items()}
        rates = {"tokens_per_second": tokens / timing.total} | ({} if mfu is None else {"mfu": mfu})
        self.monitor.step(outcome.row, {**measured, **rates, **self.speed.memory})
        loss = outcome.row["loss"]
        note = f"loss {loss:.4f}" if isinstance(loss, float) else f"no update: {outcome.row[SKIPPED]}"
        self.context.progress.update(self.step, self.config.steps, "steps", note)

    def _mfu(self, step: int, seconds: float) -> float | None:
        """Model FLOPs utilisation of a step; None where the GPU's peak is unknown."""
        if self.costs is None or self.peak is None:
            return None
        return self.costs.of_step(step) / (seconds * self.engine.world_size * self.peak)


def consumed(batches: Sequence[Batch], outcome: Outcome) -> list[tuple[int, str, int]]:
    """What a step learned from, as (pack, sample id, draw index)."""
    return [
        (batch.pack.place, *draw)
        for batch in batches
        for draw, held in zip(batch.pack.draws, batch.held_out or [False] * len(batch.pack.draws), strict=True)
        if outcome.updated and not held
    ]
