"""What a stage minimises: the flow-matching loss of a pack. Reward post-training adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from m4v.flow.loss import predict, sample_losses
from training.engine import Engine
from training.loader import Batch
from training.order import StepSize

STAGE_NAMES = ("low", "mid", "high")


@dataclass(frozen=True)
class Terms:
    """`loss` is differentiated: a sum over the pack's samples, to be divided by the step's sample count; `flow`
    is the flow-matching part of that sum. `logged`: for each of the objective's names the sum and count that a
    mean over ranks is made of."""

    loss: Tensor
    flow: float
    logged: dict[str, tuple[float, int]]


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
    """Flow matching of one pack: predicted velocities and squared errors (b,) per column."""

    predictions: list[Tensor]
    losses: list[Tensor]

    def logged(self, batch: Batch) -> dict[str, tuple[float, int]]:
        """Sums of the loss by pyramid stage."""
        found: dict[str, tuple[float, int]] = {}
        for (stage, _), losses in zip(batch.pack.columns, self.losses, strict=True):
            name = f"loss_{STAGE_NAMES[stage]}"
            total, count = found.get(name, (0.0, 0))
            found[name] = (total + float(losses.detach().double().sum()), count + len(losses))
        return found


def flow_terms(engine: Engine, batch: Batch) -> FlowTerms:
    """Run the model on a pack (PyramidFlow section 3.7: unweighted squared error of the noisy clips)."""
    predictions = predict(engine, batch.columns, batch.text, batch.text_mask, batch.pooled)
    losses = [sample_losses(p, c.target) for p, c in zip(predictions, batch.columns, strict=True)]
    return FlowTerms(predictions, losses)


FLOW_NAMES = tuple(f"loss_{name}" for name in STAGE_NAMES)


class FlowObjective:
    """Flow matching alone."""

    names = FLOW_NAMES
    high_window: tuple[float, float] | None = None
    needs_captions = False

    def __call__(self, engine: Engine, batch: Batch, size: StepSize) -> Terms:
        terms = flow_terms(engine, batch)
        loss = torch.cat(terms.losses).sum()
        return Terms(loss, float(loss.detach()), terms.logged(batch))
