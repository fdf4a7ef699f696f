"""Autoregressive sampling: frame by frame, each through the stages from low to high resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from m4v.codec.constants import PYRAMID_CONSTANTS, LatentConstants
from m4v.config import SamplerConfig
from m4v.core.errors import ConfigError
from m4v.core.rng import generator
from m4v.devices import upload
from m4v.flow.guidance import GuidedModel, TextFeatures, guidance_at, self_guidance_at
from m4v.flow.history import FrameHistory
from m4v.flow.latents import denormalise_frame, double, noise_at, normalise
from m4v.flow.loss import VelocityModel
from m4v.flow.schedule import PyramidSchedule, block_noise


class NoiseSource(Protocol):
    """Where the sampler's randomness comes from."""

    def initial(self, frame: int, shape: tuple[int, int, int]) -> Tensor:
        """N(0, 1) that `frame` starts from, at full size: (b, c, 1, h, w) for `shape` (c, h, w)."""

    def block(self, frame: int, stage: int, shape: tuple[int, int, int]) -> Tensor:
        """Block noise (b, c, 1, h, w) for entering `stage` of `frame`, `shape` (c, h, w)."""


class KeyedNoise:
    """Counter-based noise: sample i depends on `seeds[i]` alone, not on its batch; a frame's noise does not
    depend on the length, so that a longer video begins like a shorter one. All of it is made on the CPU, whose bits
    are the same beside every GPU, and goes to `device` without anybody waiting."""

    def __init__(self, seeds: Sequence[int], gamma: float, device: torch.device | str = "cpu") -> None:
        self.seeds, self.gamma, self.device = seeds, gamma, device

    def initial(self, frame: int, shape: tuple[int, int, int]) -> Tensor:
        c, h, w = shape
        return upload(self._normal((c, 1, h, w), "initial", frame), self.device)

    def block(self, frame: int, stage: int, shape: tuple[int, int, int]) -> Tensor:
        c, h, w = shape
        return upload(block_noise(self._normal((c, 1, h, w), "block", frame, stage), self.gamma), self.device)

    def _normal(self, shape: tuple[int, ...], *purpose: int | str) -> Tensor:
        rows = [generator(s, "sample", *purpose).standard_normal(shape, dtype=np.float32) for s in self.seeds]
        return torch.from_numpy(np.stack(rows))


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
    """All frames of `stream` as one tensor (b, channels, t, h, w); `on_frame(index, latent)` sees each as it is
    done. Raises ConfigError as `stream` does."""
    frames = []
    for index, latent in enumerate(
        stream(
            model, schedule, config, positive, negative, latent_shape, seeds,
            channels=channels, first_frame=first_frame, noise=noise,
        )
    ):  # fmt: skip
        frames.append(latent)
        if on_frame is not None:
            on_frame(index, latent)
    return torch.cat(frames, dim=2)


def stream(
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
    constants: LatentConstants = PYRAMID_CONSTANTS,
) -> Iterator[Tensor]:
    """De-normalised latent frames (b, channels, 1, h, w), one sample per seed, each as it is done.

    `latent_shape` is (t, h, w). `positive` has one row per sample; `negative` one row, or one per sample.
    `first_frame` (b, c, 1, h, w), a codec latent, is kept as frame 0 (image to video). `constants` are the codec's.
    The model's device and type are those of `positive.embedding`; the frames are float32 at least, so that the
    steps' sums do not round. Memory grows by the lowest size of a frame only. Raises ConfigError when the sampler
    and the schedule differ in their number of stages.
    """
    if len(config.steps_first) != schedule.stages:
        raise ConfigError(
            f"the sampler has steps for {len(config.steps_first)} stages, the model's schedule has {schedule.stages}",
            value=config.steps_first, next_step="give steps_first and steps_later one count per stage",
        )  # fmt: skip
    guided = GuidedModel(model, positive, negative, len(seeds))
    source = noise or KeyedNoise(seeds, schedule.config.gamma, positive.embedding.device)
    place = torch.empty(
        0, device=positive.embedding.device, dtype=torch.promote_types(positive.embedding.dtype, torch.float32)
    )
    return _stream(guided, schedule, config, source, (channels, *latent_shape), first_frame, place, constants)


@torch.no_grad()
def _stream(
    guided: GuidedModel,
    schedule: PyramidSchedule,
    config: SamplerConfig,
    source: NoiseSource,
    shape: tuple[int, int, int, int],
    first_frame: Tensor | None,
    place: Tensor,
    constants: LatentConstants,
) -> Iterator[Tensor]:
    """`place` has the device and type of the frames."""
    channels, frames, height, width = shape
    history = FrameHistory(schedule.stages)
    for index in range(frames):
        if index == 0 and first_frame is not None:
            frame = normalise(first_frame[:, :, :1], constants).to(place)
        else:
            start = source.initial(index, (channels, height, width)).to(place)
            frame = _frame(guided, schedule, config, source, history, start)
        history.add(frame)
        yield denormalise_frame(frame, index, constants)


def _frame(
    guided: GuidedModel,
    schedule: PyramidSchedule,
    config: SamplerConfig,
    source: NoiseSource,
    history: FrameHistory,
    start: Tensor,
) -> Tensor:
    """The next normalised frame (b, c, 1, h, w), from its full-size noise `start`."""
    index = history.count
    steps = config.steps_first if index == 0 else config.steps_later
    guidance = guidance_at(config, index)
    x = noise_at(start, 0, schedule.stages)
    for stage in range(schedule.stages):
        if stage > 0:
            alpha, beta = schedule.renoise_factors(stage)
            x = double(x)
            _, c, _, h, w = x.shape
            x = alpha * x + beta * source.block(index, stage, (c, h, w)).to(x)
        past = history.clips(stage)
        quality = self_guidance_at(config, index, stage, schedule.stages)
        timesteps, sigmas = schedule.sampling(stage, steps[stage])
        for timestep, sigma, following in zip(timesteps, sigmas[:-1], sigmas[1:], strict=True):
            x = x + (following - sigma) * guided.velocity(past, x, timestep, stage, guidance, quality)
    return x
