"""Autoregressive sampling: frame by frame, each through the stages from low to high resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from m4v.config import SamplerConfig
from m4v.core.errors import ConfigError
from m4v.core.rng import generator
from m4v.flow.latents import denormalise, double, noise_at, normalise, pyramid
from m4v.flow.loss import VelocityModel
from m4v.flow.packing import history_clips
from m4v.flow.schedule import PyramidSchedule, block_noise

GUIDANCE_FLOOR = 2.0  # linear decay never goes below


class TextFeatures(Protocol):
    """Encoded prompts: `embedding` (n, slots, d), `mask` (n, slots), `pooled` (n, p)."""

    @property
    def embedding(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def pooled(self) -> Tensor: ...


class NoiseSource(Protocol):
    """Where the sampler's randomness comes from."""

    def initial(self, shape: tuple[int, int, int, int]) -> Tensor:
        """N(0, 1) at full size for all frames, (b, c, t, h, w) for `shape` (c, t, h, w)."""

    def block(self, frame: int, stage: int, shape: tuple[int, int, int]) -> Tensor:
        """Block noise (b, c, 1, h, w) for entering `stage` of `frame`, `shape` (c, h, w)."""


class KeyedNoise:
    """Counter-based noise: sample i depends on `seeds[i]` alone, not on its batch."""

    def __init__(self, seeds: Sequence[int], gamma: float) -> None:
        self.seeds, self.gamma = seeds, gamma

    def initial(self, shape: tuple[int, int, int, int]) -> Tensor:
        """One draw per frame, so that a longer video starts from the same noise."""
        c, t, h, w = shape
        frames = [self._normal((c, 1, h, w), "initial", frame) for frame in range(t)]
        return torch.cat(frames, dim=2)

    def block(self, frame: int, stage: int, shape: tuple[int, int, int]) -> Tensor:
        c, h, w = shape
        return block_noise(self._normal((c, 1, h, w), "block", frame, stage), self.gamma)

    def _normal(self, shape: tuple[int, ...], *purpose: int | str) -> Tensor:
        rows = [generator(s, "sample", *purpose).standard_normal(shape, dtype=np.float32) for s in self.seeds]
        return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def generate(
    model: VelocityModel,
    schedule: PyramidSchedule,
    config: SamplerConfig,
    positive: TextFeatures,
    negative: TextFeatures,
    latent_shape: tuple[int, int, int],
    seeds: Sequence[int],
    *,
    channels: int = 16,
    first_frame: Tensor | None = None,
    noise: NoiseSource | None = None,
    on_frame: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """De-normalised latents (b, channels, t, h, w), one sample per seed; `latent_shape` is (t, h, w).

    `positive` has one row per sample; `negative` one row, or one per sample. `first_frame` (b, c, 1, h, w),
    a codec latent, is kept as frame 0 (image to video). `on_frame(index, latent)` sees each
    de-normalised frame as it is done. The model's device and type are those of `positive.embedding`.
    Raises ConfigError when the sampler and the schedule differ in their number of stages.
    """
    frames, height, width = latent_shape
    if len(config.steps_first) != schedule.stages:
        raise ConfigError(
            f"the sampler has steps for {len(config.steps_first)} stages, the model's schedule has {schedule.stages}",
            value=config.steps_first, next_step="give steps_first and steps_later one count per stage",
        )  # fmt: skip
    text = positive.embedding
    source = noise or KeyedNoise(seeds, schedule.config.gamma)
    initial = source.initial((channels, frames, height, width)).to(text)
    condition = _Condition(positive, negative, len(seeds))
    done: list[Tensor] = []
    if first_frame is not None:
        done.append(normalise(first_frame[:, :, :1]).to(text))
        _report(on_frame, done)
    while len(done) < frames:
        index = len(done)
        start = initial[:, :, index : index + 1]
        done.append(_frame(model, schedule, config, condition, source, done, start))
        _report(on_frame, done)
    return denormalise(torch.cat(done, dim=2))


def _report(on_frame: Callable[[int, Tensor], None] | None, done: list[Tensor]) -> None:
    if on_frame is not None:
        index = len(done) - 1
        # A later frame has the constants of frames after the first.
        pair = denormalise(torch.cat([done[0], done[index]], dim=2))
        on_frame(index, pair[:, :, :1] if index == 0 else pair[:, :, 1:])


class _Condition:
    """Text rows for one model call: [negative, positive] with guidance, positive alone without."""

    def __init__(self, positive: TextFeatures, negative: TextFeatures, batch: int) -> None:
        self.batch = batch
        self.plain = (positive.embedding, positive.mask, positive.pooled)
        rows = (negative.embedding, negative.mask, negative.pooled)
        spread = [r.expand(batch, *r.shape[1:]) if r.shape[0] == 1 else r for r in rows]
        self.guided = tuple(torch.cat([n, p]) for n, p in zip(spread, self.plain, strict=True))

    def velocity(
        self, model: VelocityModel, clips: list[Tensor], timestep: float, stage: int, guidance: float
    ) -> Tensor:
        if guidance > 0:
            clips = [torch.cat([clip, clip]) for clip in clips]
        embedding, mask, pooled = self.guided if guidance > 0 else self.plain
        timesteps = torch.full((clips[0].shape[0],), timestep, dtype=torch.float32, device=embedding.device)
        (out,) = model([clips], timesteps, embedding, mask, pooled, [stage])
        if guidance <= 0:
            return out
        without, with_text = out[: self.batch], out[self.batch :]
        return without + guidance * (with_text - without)


def _frame(
    model: VelocityModel,
    schedule: PyramidSchedule,
    config: SamplerConfig,
    condition: _Condition,
    source: NoiseSource,
    done: list[Tensor],
    start: Tensor,
) -> Tensor:
    """One normalised frame (b, c, 1, h, w) after the frames `done`."""
    index = len(done)
    steps = config.steps_first if index == 0 else config.steps_later
    guidance = guidance_at(config, index)
    history = pyramid(torch.cat(done, dim=2), schedule.stages) if done else []
    x = noise_at(start, 0, schedule.stages)
    for stage in range(schedule.stages):
        if stage > 0:
            alpha, beta = schedule.renoise_factors(stage)
            x = double(x)
            _, c, _, h, w = x.shape
            x = alpha * x + beta * source.block(index, stage, (c, h, w)).to(x)
        past = history_clips(history, stage, index + 1) if done else []
        timesteps, sigmas = schedule.sampling(stage, steps[stage])
        for timestep, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
            velocity = condition.velocity(model, [*past, x], timestep, stage, guidance)
            x = x + (following - sigma) * velocity
    return x


def guidance_at(config: SamplerConfig, frame: int) -> float:
    """Guidance scale of a frame: its own for frame 0, then the other one with linear decay down to 2."""
    if frame == 0:
        return config.guidance_first
    if config.guidance_later <= 0 or config.guidance_decay == 0:
        return config.guidance_later
    return max(config.guidance_later - config.guidance_decay * frame, GUIDANCE_FLOOR)
