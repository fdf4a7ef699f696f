"""The loop of a training stage: draw, step, record, save, drain.

The engine computes, the order decides what is seen; `Trainer` holds what a rank carries from step to step.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import distributed

from m4v.core.errors import NeedsHuman
from m4v.core.stage import StageContext
from training.config import TrainConfig
from training.ema import Ema
from training.engine import Engine
from training.exposure import DebugLog
from training.loader import Batch, Collator, Prefetcher
from training.metrics import Speed, StepSums, Timing
from training.objective import Objective
from training.order import DataOrder
from training.state import Row, SaveManifest, Shard, StateFile, StateStore

PREFETCH_STEPS = 2


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
    """One rank of a stage run. `step` steps are finished; `lineage` lists (first step, world size) of the
    attempts behind them, this one included; `metric_files` hold the rows of all saved steps."""

    context: StageContext
    config: TrainConfig
    order: DataOrder
    collate: Collator
    objective: Objective
    engine: Engine
    ema: Ema | None
    states: StateStore
    step: int
    lineage: tuple[tuple[int, int], ...]
    metric_files: tuple[StateFile, ...] = ()
    rows: list[Row] = field(default_factory=list)  # since the last save
    speed: Speed = field(default_factory=Speed)

    def run(self) -> SaveManifest | None:
        """Train to the last step; rank 0 gets the manifest of the final save.

        Raises Drained after a saved step when a stop was asked for, NeedsHuman on a loss or gradient that is
        not finite.
        """
        log = DebugLog.from_environment(self.config.name, self.context.rank)
        prefetch = Prefetcher(self._batches, self.step, self.config.steps, PREFETCH_STEPS)
        manifest: SaveManifest | None = None
        began = time.perf_counter()
        try:
            for step, batches in prefetch:
                timing = Timing(data=time.perf_counter() - began)
                drain = self._one_step(step, batches, timing)
                log.write(step, self.engine.world_size, [(b.pack.place, *d) for b in batches for d in b.pack.draws])
                self.step = step + 1
                finished = self.step == self.config.steps
                if drain or finished or self.step % self.config.save_every == 0:
                    with timing.part("save"):
                        manifest = self.save()
                timing.total = time.perf_counter() - began
                self._record(step, timing)
                if drain and not finished:
                    self.context.request_drain()  # another rank may have been the one that was asked
                    self.context.check_drain()
                began = time.perf_counter()
        finally:
            prefetch.close()
        return manifest

    def save(self) -> SaveManifest | None:
        """Write and commit the state after `step` steps; every rank takes part, rank 0 gets the manifest."""
        own = self.states.write_shards(self.step, self.context.rank, shards_of(self.engine, self.ema))
        files: list[dict[str, object]] = [{}] * self.context.world_size
        distributed.gather_object(own.canonical(), files if self.context.rank == 0 else None)
        manifest = None
        if self.context.rank == 0:
            self.metric_files = (*self.metric_files, self.states.write_metrics(self.rows))
            manifest = SaveManifest(
                step=self.step,
                shapes=self.engine.shapes,
                has_ema=self.ema is not None,
                files=tuple(StateFile.model_validate(f) for f in files),
                metrics=self.metric_files,
                lineage=self.lineage,
            )
            self.states.commit(manifest)
        self.rows = []
        distributed.barrier()  # no rank goes on before the save exists
        return manifest

    def _batches(self, step: int) -> list[Batch]:
        packs = self.order.rank_packs(step, self.context.rank, self.context.world_size)
        return [self.collate(pack).to(self.engine.device) for pack in packs]

    def _one_step(self, step: int, batches: list[Batch], timing: Timing) -> bool:
        """Forward, backward, update and the metrics row; true when any rank was asked to stop."""
        size, sums = self.order.step_size(step), StepSums(self.objective.names, self.engine.device)
        for batch in batches:
            with timing.part("forward"):
                terms = self.objective(self.engine, batch, size)
            if not math.isfinite(float(terms.loss.detach())):
                raise self._not_finite("loss", step, [batch])
            with timing.part("backward"):
                self.engine.backward(terms.loss / size.samples)
            sums.add(terms)
        lr = self.config.optimizer.lr_at(step, self.config.steps)
        with timing.part("optimizer"):
            norm = self.engine.step(lr)
            if not math.isfinite(norm):
                raise self._not_finite("gradient", step, batches)
            if self.ema is not None:
                self.ema.update(step)
            means = sums.reduce(size.samples, self.context.drain_requested)
        self.speed.tokens += size.tokens
        row = {"step": step, "loss": means.loss, "grad_norm": norm, "lr": lr, "tokens": size.tokens}
        self.rows.append({**row, "samples": size.samples, "media": self.order.media(step), **means.named})
        self.context.progress.update(step + 1, self.config.steps, "steps", f"loss {means.loss:.4f}")
        return means.drain

    def _not_finite(self, what: str, step: int, batches: list[Batch]) -> NeedsHuman:
        return NeedsHuman(
            f"{what} is not finite at step {step} of stage {self.config.name!r}; the step was not taken",
            value=sorted({s for batch in batches for s in batch.pack.samples}),
            where=f"samples of rank {self.context.rank}",
            next_step="look at the samples with `m4v data inspect`, or lower optimizer.lr",
        )

    def _record(self, step: int, timing: Timing) -> None:
        self.speed.steps.append(timing)
        if self.context.rank == 0:
            parts = {name: round(seconds, 6) for name, seconds in vars(timing).items()}
            with Path(self.context.work_dir, "timings.jsonl").open("a") as stream:
                stream.write(json.dumps({"step": step, **parts}) + "\n")
