"""Non-autoregressive sampling: all latent frames of a clip are denoised together (paper §4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from m4v.core.errors import InputError
from m4v.core.rng import generator
from m4v.wan.config import WanSamplerConfig
from m4v.wan.transformer import WanTransformer


class EncodedText(Protocol):
    """Encoded prompts: `embedding` (n, slots, d), zero at pads."""

    @property
    def embedding(self) -> Tensor: ...


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int, int]) -> Tensor:
    """N(0, 1) float32 (b, c, t, h, w) for `shape` (c, t, h, w): row i depends on `seeds[i]` alone.

    One draw per latent frame, so that a longer clip starts from the same noise.
    """
    c, t, h, w = shape
    rows = [
        np.stack(
            [generator(s, "sample", "initial", f).standard_normal((c, h, w), dtype=np.float32) for f in range(t)], 1
        )
        for s in seeds
    ]
    return torch.from_numpy(np.stack(rows))


Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class WanSampler:
    """Samples normalised latents with diffusers' UniPC or Euler scheduler and classifier-free guidance."""

    def __init__(self, model: WanTransformer, config: WanSamplerConfig) -> None:
        self.model, self.config = model, config

    @torch.no_grad()
    def sample(
        self,
        positive: EncodedText,
        negative: EncodedText | None,
        latent_shape: tuple[int, int, int],
        seeds: Sequence[int],
        *,
        noise: Tensor | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Normalised latents, float32 (b, c, t, h, w) on the model's device, one sample per seed.

        `positive` has one row per sample; `negative` one row, or one per sample, and may be None when guidance
        is off. `latent_shape` is (t, h, w). `noise` replaces the keyed noise. `on_step(done, total)` follows
        the progress. Raises InputError when the rows do not fit the seeds or the negative text is missing.
        """
        config, model = self.config, self.model
        like = model.patch_embedding.weight
        text = _rows(positive, len(seeds), "prompts").to(like)
        other = None
        if config.guidance > 1:
            if negative is None:
                raise InputError("guidance needs a negative prompt; the empty text will do", value=config.guidance)
            other = _rows(negative, len(seeds), "negative prompts").to(like)
        channels = model.wan.latent_channels
        start = initial_noise(seeds, (channels, *latent_shape)) if noise is None else noise

        def velocity(x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
            found: Tensor = self.model(x.to(rows.dtype), times, rows, return_dict=False)[0]
            return found

        return denoise(velocity, config, text, other, start.to(like.device, torch.float32), on_step)


@torch.no_grad()
def denoise(
    velocity: Velocity,
    config: WanSamplerConfig,
    text: Tensor,
    other: Tensor | None,
    noise: Tensor,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`noise` (b, c, t, h, w) brought to normalised latents under `text`, guided away from `other` where there is one.
    `velocity` answers noisy latents, times (b,) and text rows."""
    x, scheduler = noise, make_scheduler(config, str(noise.device))
    total = len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        times = timestep.expand(len(x))
        found = velocity(x, times, text)
        if other is not None:
            # A call of its own, as in Wan: the pair would double the activations of the longest sequences.
            without = velocity(x, times, other)
            found = without + config.guidance * (found - without)
        x = scheduler.step(found, timestep, x, return_dict=False)[0]
        if on_step is not None:
            on_step(step + 1, total)
    return x


def make_scheduler(
    config: WanSamplerConfig, device: str = "cpu"
) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler:
    """diffusers' scheduler with its timesteps set: UniPC as Wan's published folders configure it, or Euler."""
    if config.scheduler == "unipc":
        unipc = UniPCMultistepScheduler(
            num_train_timesteps=config.train_steps, prediction_type="flow_prediction", use_flow_sigmas=True,
            flow_shift=config.shift,
        )  # fmt: skip
        unipc.set_timesteps(config.steps, device=device)
        return unipc
    euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.train_steps, shift=config.shift)
    # Even steps before the shift, from pure noise: diffusers' own default shifts its last level twice.
    sigmas = np.linspace(1.0, 0.0, config.steps + 1)[:-1]
    euler.set_timesteps(sigmas=sigmas.tolist(), device=device)
    return euler


def _rows(features: EncodedText, count: int, what: str) -> Tensor:
    rows = features.embedding
    if rows.shape[0] == 1:
        return rows.expand(count, -1, -1)
    if rows.shape[0] != count:
        raise InputError(f"{what} do not fit the seeds", value=f"{rows.shape[0]} for {count} seeds")
    return rows
