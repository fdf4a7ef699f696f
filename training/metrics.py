"""Numbers of a stage: exact means over ranks for `metrics.jsonl`, speed and memory for the run's ledger row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import distributed

from training.clock import Timing
from training.objective import Terms

_FIRST_NAME = 3


@dataclass(frozen=True)
class StepMeans:
    """Global results of a step: the flow loss over the `samples` that train (None without one), named means (None
    without a finite value) and the drain request."""

    loss: float | None
    samples: int
    named: dict[str, float | None]
    drain: bool


class StepSums:
    """Sums of one rank over the packs of a step, reduced in float64 by one collective."""

    def __init__(self, names: Sequence[str], device: torch.device | None = None) -> None:
        self._names, self._device = tuple(names), device
        self._sums = torch.zeros(_FIRST_NAME + 2 * len(self._names), dtype=torch.float64)

    def add(self, terms: Terms) -> None:
        self._sums[0] += terms.flow
        self._sums[2] += terms.samples
        for i, name in enumerate(self._names):
            total, count = terms.logged.get(name, (0.0, 0))
            self._sums[_FIRST_NAME + 2 * i] += total
            self._sums[_FIRST_NAME + 1 + 2 * i] += count

    def reduce(self, drain: bool = False) -> StepMeans:
        """Means over all ranks; `drain` is this rank's wish to stop."""
        self._sums[1] = float(drain)
        sums = self._sums.to(self._device)  # where the collectives work
        distributed.all_reduce(sums)
        flow, drains, samples, *values = sums.tolist()
        pairs = zip(self._names, values[::2], values[1::2], strict=True)
        named = {name: finite(total / count) if count > 0 else None for name, total, count in pairs}
        return StepMeans(flow / samples if samples else None, round(samples), named, drains > 0)


def finite(value: float | None) -> float | None:
    """The value as JSON can carry it."""
    return value if value is not None and math.isfinite(value) else None


@dataclass
class Speed:
    """Timings of the steps of this attempt."""

    steps: list[Timing] = field(default_factory=list)
    tokens: int = 0
    mfu: list[float] = field(default_factory=list)
    memory: Mapping[str, int] = field(default_factory=dict)  # after the last step

    def summary(self) -> dict[str, object]:
        if not self.steps:
            return {"steps_this_attempt": 0}
        seconds = sum(t.total for t in self.steps)
        steady = self.steps[1:] or self.steps  # the first step warms up
        parts = {name: sum(getattr(t, name) for t in steady) for name in vars(steady[0])}
        whole = parts.pop("total") or 1.0
        return {
            "steps_this_attempt": len(self.steps),
            "tokens_per_second": self.tokens / seconds,
            # Without saves and validation, as a plan tells it: they are a large part of a rehearsal's two steps.
            "step_seconds_median": statistics.median(t.total - t.save - t.validation for t in steady),
            "data_wait_share": sum(t.data for t in self.steps) / seconds,
            "save_seconds": sum(t.save for t in self.steps),
            "step_shares": {name: spent / whole for name, spent in parts.items()},
            **({"mfu_median": statistics.median(self.mfu)} if self.mfu else {}),
            **self.memory,
        }
