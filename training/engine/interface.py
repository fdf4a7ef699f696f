"""The thin engine interface of the trainer.

The trainer needs: forward through the sharded module, backward, an optimiser step that returns the gradient
norm, and the flat fragments of weights and moments that this rank owns. Everything else (data order, learning
rate, EMA, saves, step counter) stays outside, so another back end has little to provide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from m4v.flow.loss import VelocityModel

MOMENTS = ("exp_avg", "exp_avg_sq")
Accept = Callable[[float], bool]  # gradient norm -> whether the update is taken


@dataclass(frozen=True)
class Fragment:
    """A flat range of one parameter that this rank updates: views of the fp32 master and the Adam moments.
    Where several ranks hold the same range (ZeRO-0), one of them has it as `primary` and saves it."""

    name: str
    shape: tuple[int, ...]
    offset: int  # of its first element in the flattened parameter
    master: Tensor
    moments: tuple[Tensor, Tensor]
    primary: bool = True


class Engine(VelocityModel, Protocol):
    """Called, the forward pass of the sharded module: one pack, followed by its `backward`."""

    rank: int
    world_size: int
    device: torch.device  # where the model computes, and wants its batches
    shapes: dict[str, tuple[int, ...]]  # of every parameter, whole

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, summed (not averaged) over ranks and packs of a step."""
        ...

    @property
    def evaluate(self) -> VelocityModel:
        """Forward pass between steps that nothing learns from; every rank makes as many of them."""
        ...

    def step(self, lr: float, accept: Accept = math.isfinite) -> float:
        """Clip, update, clear gradients; returns the global gradient norm before clipping, NaN or infinite when
        the gradient is. Weights and moments stay as they are when `accept`, given the norm, says no; it must say
        the same on every rank."""
        ...

    def fragments(self) -> list[Fragment]:
        """What this rank updates, in the same order on every call. Every element of every parameter is
        primary on exactly one rank."""
        ...

    def set_adam_step(self, steps: int) -> None:
        """Number of updates behind the moments (bias correction)."""
        ...

    def close(self) -> None:
        """Nothing comes after; memory that would stay beside another engine is given back."""
        ...
