"""Numbers of a stage: exact means over ranks for `metrics.jsonl`, wall-clock parts for the run's ledger row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import distributed

from training.objective import Terms


@dataclass(frozen=True)
class StepMeans:
    """Global results of a step: the flow loss, named means (None without a value) and the drain request."""

    loss: float
    named: dict[str, float | None]
    drain: bool


class StepSums:
    """Sums of one rank over the packs of a step, reduced in float64 by one collective."""

    def __init__(self, names: Sequence[str], device: torch.device | None = None) -> None:
        self._names, self._device = tuple(names), device
        self._sums = torch.zeros(2 + 2 * len(self._names), dtype=torch.float64)

    def add(self, terms: Terms) -> None:
        self._sums[0] += terms.flow
        for i, name in enumerate(self._names):
            total, count = terms.logged.get(name, (0.0, 0))
            self._sums[2 + 2 * i] += total
            self._sums[3 + 2 * i] += count

    def reduce(self, samples: int, drain: bool) -> StepMeans:
        """Means over all ranks; `samples` is the step's constant, `drain` this rank's wish to stop."""
        self._sums[1] = float(drain)
        sums = self._sums.to(self._device)  # where the collectives work
        distributed.all_reduce(sums)
        values = sums.tolist()
        named = {
            name: values[2 + 2 * i] / values[3 + 2 * i] if values[3 + 2 * i] > 0 else None
            for i, name in enumerate(self._names)
        }
        return StepMeans(values[0] / samples, named, values[1] > 0)


@dataclass
class Timing:
    """Seconds of one step by part."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    save: float = 0.0
    total: float = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - begin)


@dataclass
class Speed:
    """Timings of the steps of this attempt."""

    steps: list[Timing] = field(default_factory=list)
    tokens: int = 0

    def summary(self) -> dict[str, object]:
        if not self.steps:
            return {"steps_this_attempt": 0}
        seconds = sum(t.total for t in self.steps)
        steady = self.steps[1:] or self.steps  # the first step warms up
        return {
            "steps_this_attempt": len(self.steps),
            "tokens_per_second": self.tokens / seconds,
            "step_seconds_median": statistics.median(t.total for t in steady),
            "data_wait_share": sum(t.data for t in self.steps) / seconds,
            "save_seconds": sum(t.save for t in self.steps),
        }
