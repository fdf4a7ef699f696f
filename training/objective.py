"""What a stage minimises: the flow-matching loss of a pack. Reward post-training adds to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from m4v.flow.loss import VelocityModel, predict, sample_losses
from training.engine import Engine
from training.loader import Batch
from training.order import StepSize

STAGE_NAMES = ("low", "mid", "high")


TIMESTEP_BINS = 5
TIMESTEP_NAMES = tuple(f"loss_t{100 * i // TIMESTEP_BINS:02d}" for i in range(TIMESTEP_BINS))  # from so many % on
FLOW_NAMES = (*(f"loss_{name}" for name in STAGE_NAMES), *TIMESTEP_NAMES)  # of the pyramid family
Logged = dict[str, tuple[float, int]]


@dataclass(frozen=True)
class Terms:
    """`loss` is differentiated: a sum over the pack's samples, to be divided by the step's sample count, over `samples`
    that train. `read` tells `flow` and `logged`; it waits for a GPU, and is called once, by whoever asks first."""

    loss: Tensor
    samples: int
    read: Callable[[], tuple[float, Logged]]

    @classmethod
    def of(cls, loss: Tensor, flow: float, samples: int, logged: Logged) -> Terms:
        """Terms whose numbers are known."""
        return cls(loss, samples, lambda: (flow, logged))

    @cached_property
    def _numbers(self) -> tuple[float, Logged]:
        return self.read()

    @property
    def flow(self) -> float:
        """The flow-matching part of the loss."""
        return self._numbers[0]

    @property
    def logged(self) -> Logged:
        """For each of the objective's names the sum and count that a mean over ranks is made of."""
        return self._numbers[1]

    def after_backward(self) -> Terms:
        """The same numbers without the graph of the loss."""
        return replace(self, loss=self.loss.detach())


class Objective(Protocol):
    """A loss, and what it asks of the batches (see `training.loader.Collator`)."""

    high_window: tuple[float, float] | None
    needs_captions: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Extra columns of the metrics."""
        ...

    def __call__(self, engine: Engine, batch: Batch, size: StepSize) -> Terms: ...


@dataclass(frozen=True)
class FlowTerms:
    """Flow matching of one pack: predicted velocities (b, …) and the squared errors of the samples that train, per
    column; `trained` holds their rows."""

    predictions: list[Tensor]
    losses: list[Tensor]
    trained: list[list[int]]

    @property
    def samples(self) -> int:
        return sum(map(len, self.trained))

    def logged(self, batch: Batch, train_steps: int) -> Logged:
        """Sums of the loss by pyramid stage and by timestep, out of `train_steps`."""
        return self.reader(batch, train_steps)()

    def reader(self, batch: Batch, train_steps: int) -> Callable[[], Logged]:
        """`logged` for later: a GPU works on meanwhile, and neither graph nor batch is held."""
        on_device = torch.cat([x.detach() for x in self.losses]), torch.cat([c.timestep for c in batch.columns])
        stages, sizes = [stage for stage, _ in batch.pack.columns], [len(c.timestep) for c in batch.columns]
        trained = self.trained

        def read() -> Logged:
            found: Logged = {}
            losses, fed = (x.cpu() for x in on_device)
            bins = (fed.double() * TIMESTEP_BINS / train_steps).long().clamp_(0, TIMESTEP_BINS - 1).split(sizes)
            for stage, rows, of_column, of_bin in zip(
                stages, trained, losses.split([len(rows) for rows in trained]), bins, strict=True
            ):
                if stage < len(STAGE_NAMES):
                    add_to(found, FLOW_NAMES[stage], of_column)
                for number, name in enumerate(TIMESTEP_NAMES):
                    add_to(found, name, of_column[of_bin[rows] == number])
            return found

        return read


def add_to(logged: Logged, name: str, values: Tensor) -> None:
    """Count `values` (n,) into the mean of a name."""
    total, count = logged.get(name, (0.0, 0))
    logged[name] = (total + float(values.double().sum()), count + len(values))


def flow_terms(engine: VelocityModel, batch: Batch) -> FlowTerms:
    """Run the model on a pack (PyramidFlow section 3.7: unweighted squared error of the noisy clips)."""
    predictions = predict(engine, batch.columns, batch.text, batch.text_mask, batch.pooled)
    trained = [batch.trained(c) for c in range(len(batch.columns))]
    losses = [
        _rows(sample_losses(p, c.target), rows) for p, c, rows in zip(predictions, batch.columns, trained, strict=True)
    ]
    return FlowTerms(predictions, losses, trained)


def _rows(losses: Tensor, rows: list[int]) -> Tensor:
    """`losses[rows]`, for which the rows would be copied to a GPU and waited for."""
    if rows == list(range(len(losses))):
        return losses
    return torch.stack([losses[row] for row in rows]) if rows else losses[:0]


class FlowObjective:
    """Flow matching alone; timesteps run to `train_steps`, `names` are the family's columns of the metrics."""

    high_window: tuple[float, float] | None = None
    needs_captions = False

    def __init__(self, train_steps: int, names: tuple[str, ...] = FLOW_NAMES) -> None:
        self._train_steps, self.names = train_steps, names

    def __call__(self, engine: Engine, batch: Batch, size: StepSize) -> Terms:
        terms = flow_terms(engine, batch)
        loss = torch.cat(terms.losses).sum()
        flow, logged = loss.detach(), terms.reader(batch, self._train_steps)
        return Terms(loss, terms.samples, lambda: (float(flow), logged()))
