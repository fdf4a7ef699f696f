"""Exponential moving average of the fp32 master fragments: element-wise on each rank, nothing is gathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.engine import Fragment


def decay_at(decay: float, step: int) -> float:
    """Decay of update `step` (from 0), ramped so that a short run is not averaged with its start."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """Averages beside the fragments of one rank, in the same order."""

    def __init__(self, fragments: Sequence[Fragment], decay: float) -> None:
        self._masters = [f.master.detach() for f in fragments]
        self.averages = [m.clone() for m in self._masters]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.averages, self._masters, 1 - decay_at(self._decay, step))

    def load(self, averages: Sequence[Tensor]) -> None:
        for own, saved in zip(self.averages, averages, strict=True):
            own.copy_(saved)
