"""Flow matching over whole clips (paper §4.1): every frame is noisy at one level, and the loss is on every frame.

x = (1 - sigma) clean + sigma noise, target velocity = noise - clean. All numbers come from counter-based
generators keyed by (seed, sample id, draw index, purpose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from m4v.core.rng import generator
from m4v.flow.loss import sample_losses
from m4v.wan.config import WanFlowConfig


@dataclass(frozen=True)
class WanDraws:
    """Random numbers of a batch: `noise` N(0, 1) like the latents, `sigma` (b,) in (0, 1] after the shift."""

    noise: Tensor
    sigma: Tensor

    @classmethod
    def from_keys(
        cls, config: WanFlowConfig, seed: int, keys: Sequence[tuple[str, int]], shape: tuple[int, int, int, int]
    ) -> WanDraws:
        """Draws for the samples `keys` = (sample id, draw index), latents (c, t, h, w).

        A sample's numbers depend on (seed, sample id, draw index) alone, never on its batch or rank.
        """
        noise = [generator(seed, *key, "noise").standard_normal(shape, dtype=np.float32) for key in keys]
        levels = [_sigma(config, generator(seed, *key, "timestep")) for key in keys]
        return cls(torch.from_numpy(np.stack(noise)), torch.tensor(levels, dtype=torch.float32))


def shifted(sigma: float, shift: float) -> float:
    """Noise level pushed towards noise: larger clips need more noise for the same ambiguity (SD3, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _sigma(config: WanFlowConfig, source: np.random.Generator) -> float:
    if config.sigma_draw == "uniform":
        level = 1.0 - source.random()  # (0, 1]
    else:
        level = float(1 / (1 + np.exp(-source.standard_normal())))
    return shifted(level, config.shift)


@dataclass(frozen=True)
class WanBatch:
    """What the model is given, `noisy` (b, c, t, h, w) and `timestep` (b,), and what it should answer, `target`.

    `sigma` (b,) is kept for `clean_estimate`.
    """

    noisy: Tensor
    timestep: Tensor
    target: Tensor
    sigma: Tensor


def pack(config: WanFlowConfig, clean: Tensor, draws: WanDraws) -> WanBatch:
    """Mix normalised latents `clean` (b, c, t, h, w) with their draws; on the device and in the type of `clean`."""
    noise, sigma = draws.noise.to(clean), draws.sigma.to(clean.device)
    level = sigma.to(clean.dtype).reshape(-1, 1, 1, 1, 1)
    noisy = (1 - level) * clean + level * noise
    return WanBatch(noisy, sigma * config.train_steps, noise - clean, sigma)


def wan_velocity(model: nn.Module, batch: WanBatch, text: Tensor) -> Tensor:
    """Predicted velocity; `text` (b, slots, text_dim), zero at pads. `model` may be wrapped for training."""
    (velocity,) = model(batch.noisy, batch.timestep, text, return_dict=False)
    predicted: Tensor = velocity
    return predicted


def wan_loss(model: nn.Module, batch: WanBatch, text: Tensor) -> Tensor:
    """Mean over the samples of the mean squared velocity error over the whole clip, in float32."""
    return sample_losses(wan_velocity(model, batch, text), batch.target).mean()


def clean_estimate(batch: WanBatch, prediction: Tensor) -> Tensor:
    """One-step estimate of the clean latents of the whole clip (paper eq. 5 with one stage), for reward learning."""
    return batch.noisy - batch.sigma.to(prediction.dtype).reshape(-1, 1, 1, 1, 1) * prediction
