"""How videos look to a reward stage's scorers: one unit vector for each, without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from m4v.codec.interface import LatentCodec
from m4v.flow.loss import VelocityModel
from training.loader import Batch
from training.reward.rewards import Rewards

_FRAMES = 3  # of a video that are looked at: the first, the last, and one between


@dataclass(frozen=True)
class Appearance:
    """Decodes latents and looks at the frames with a scorer that is held out of the reward, where there is one."""

    codec: LatentCodec
    rewards: Rewards

    @torch.no_grad()
    def __call__(self, latents: Sequence[Tensor], device: torch.device) -> Tensor:
        """(d,) float32 on the CPU: direction of the mean vector of evenly spaced frames, which are scored on `device`.
        `latents`: un-normalised, (16, 1, h, w) each."""
        frames = np.concatenate(list(self.codec.decode_stream(latents)))
        chosen = frames[np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)]
        pixels = torch.from_numpy(chosen).to(device).movedim(-1, 1).float() / 255
        mean = self.rewards.features(pixels).float().mean(dim=0)
        return torch.nn.functional.normalize(mean, dim=0).cpu()


@runtime_checkable
class Judging(Protocol):
    """An objective whose codec and scorers a probe may use: on videos, and on estimates as its own steps do."""

    high_window: tuple[float, float] | None

    @property
    def appearance(self) -> Appearance: ...

    @property
    def scorers(self) -> tuple[str, ...]: ...

    def scores(self, model: VelocityModel, batch: Batch) -> dict[str, Tensor]: ...
