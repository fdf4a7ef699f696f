"""One training column: a history of clean, corrupted clips and a noisy clip at one stage of the pyramid.

Follows PyramidFlow's packing (temporal pyramid) with M4V's corruption, which grows towards the
noisy frame (paper A.3). Every random number comes in through `ColumnDraws`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from m4v.core.rng import generator
from m4v.flow.latents import double, noise_at, pyramid
from m4v.flow.schedule import PyramidSchedule


@dataclass(frozen=True)
class ColumnDraws:
    """Random numbers of one column: N(0, 1) noise of the noisy clip at full size, uniforms in [0, 1).

    `history` holds N(0, 1) noise for each history clip, in the clips' order (oldest first).
    """

    noise: Tensor
    step: Tensor  # (b,) picks the timestep
    corruption: Tensor  # (b,) times the ratio: the strongest history noise
    corruption_floor: Tensor  # (b,) times that: the weakest (linear corruption only)
    history: tuple[Tensor, ...]

    @classmethod
    def from_keys(
        cls,
        seed: int,
        keys: Sequence[tuple[str, int]],
        latent_shape: tuple[int, int, int, int],
        stage: int,
        unit: int,
        *,
        levels: int = 3,
        whole: bool = False,
    ) -> ColumnDraws:
        """Draws for the samples `keys` = (sample id, draw index), latents (c, t, h, w) at full size.

        Each number depends on (seed, sample id, draw index, purpose) alone, so neither the composition of a
        batch nor the rank can change it. `whole` is for columns whose every frame is noisy.
        """
        channels, _, height, width = latent_shape

        def normal(purpose: str, shape: tuple[int, ...]) -> Tensor:
            rows = [generator(seed, *key, purpose).standard_normal(shape, dtype=np.float32) for key in keys]
            return torch.from_numpy(np.stack(rows))

        def uniform(purpose: str) -> Tensor:
            return torch.tensor([generator(seed, *key, purpose).random(dtype=np.float32) for key in keys])

        history = () if whole else history_shape(stage, unit)
        shapes = [(channels, n, height >> (levels - 1 - s), width >> (levels - 1 - s)) for s, n in history]
        return cls(
            noise=normal("noise", (channels, unit if whole else 1, height, width)),
            step=uniform("timestep"),
            corruption=uniform("corruption"),
            corruption_floor=uniform("corruption_floor"),
            history=tuple(normal(f"corruption_noise.{i}", shape) for i, shape in enumerate(shapes)),
        )


@dataclass(frozen=True)
class PackedColumn:
    """What the model is given for one column and what it should answer.

    `clips` oldest first, the noisy one last; `target` has its shape. `timestep` (b,) is fed to the model;
    `sigma` (b,) is the local noise level and `noise` the stage's noise, both kept for `clean_estimate`.
    """

    stage: int
    clips: list[Tensor]
    timestep: Tensor
    target: Tensor
    sigma: Tensor
    noise: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedColumn:
        """The column with every tensor changed alike: moved, or of another type."""
        tensors = (self.timestep, self.target, self.sigma, self.noise)
        return PackedColumn(self.stage, [change(clip) for clip in self.clips], *map(change, tensors))


def history_shape(stage: int, unit: int) -> tuple[tuple[int, int], ...]:
    """(stage of its resolution, frames) of each history clip before frame `unit` (counted from 1), oldest first.

    The previous frame has the column's own size, the one before half of it, all older ones the lowest
    (paper eq. 4); lowest frames that are neighbours and old form one clip.
    """
    clips: list[tuple[int, int]] = []
    left, size = unit - 1, stage
    while left > 0:
        frames = 1 if size > 0 or not clips else left
        clips.insert(0, (size, frames))
        left, size = left - frames, max(size - 1, 0)
    return tuple(clips)


def history_clips(levels: Sequence[Tensor], stage: int, unit: int) -> list[Tensor]:
    """Clean history clips cut from a pyramid (lowest first) of all frames before `unit`."""
    clips, begin = [], 0
    for size, frames in history_shape(stage, unit):
        clips.append(levels[size][:, :, begin : begin + frames])
        begin += frames
    return clips


def pack_column(
    schedule: PyramidSchedule, latents: Tensor, stage: int, unit: int, draws: ColumnDraws, *, whole: bool = False
) -> PackedColumn:
    """Build a column from normalised latents (b, c, t, h, w), t >= `unit`.

    Autoregressive: frame `unit` (from 1) is noisy and earlier ones are its history. With `whole` all of the
    first `unit` frames are noisy (no history). Raises ValueError when the latents are too short.
    """
    if not 1 <= unit <= latents.shape[2]:
        raise ValueError(f"unit {unit} of latents with {latents.shape[2]} frames")
    levels = pyramid(latents[:, :, :unit], schedule.stages)
    first = 0 if whole else unit - 1
    noise = noise_at(draws.noise, stage, schedule.stages)
    end_sigma, start_sigma = schedule.end[stage], schedule.start[stage]
    end = end_sigma * noise + (1 - end_sigma) * levels[stage][:, :, first:]
    start = noise
    if stage > 0:
        start = start_sigma * noise + (1 - start_sigma) * double(levels[stage - 1][:, :, first:])
    steps = schedule.config.train_steps
    index = (draws.step.double() * steps).long().clamp_(max=steps - 1)
    sigma = schedule.sigmas[stage][index].to(latents.dtype)
    r = sigma.reshape(-1, 1, 1, 1, 1)
    noisy = r * start + (1 - r) * end
    history = [] if whole else _corrupted(schedule, history_clips(levels, stage, unit), draws)
    return PackedColumn(stage, [*history, noisy], schedule.timesteps[stage][index], start - end, sigma, noise)


def _corrupted(schedule: PyramidSchedule, clips: list[Tensor], draws: ColumnDraws) -> list[Tensor]:
    frames = [clip.shape[2] for clip in clips]
    levels = corruption_levels(
        draws.corruption * schedule.config.corruption_ratio,
        draws.corruption_floor,
        sum(frames),
        schedule.config.corruption,
    )
    corrupted = []
    for clip, noise, sigma in zip(clips, draws.history, levels.split(frames, dim=1), strict=True):
        level = sigma.to(clip.dtype)[:, None, :, None, None]
        corrupted.append(level * noise + (1 - level) * clip)
    return corrupted


def corruption_levels(highest: Tensor, floor: Tensor, frames: int, kind: Literal["linear", "constant"]) -> Tensor:
    """Noise level of each history frame (b, frames), oldest first.

    `constant` gives all frames `highest`. `linear` (paper A.3) rises evenly from `floor` * `highest` at the
    oldest frame to `highest` at the newest; a single frame gets `highest`.
    """
    if kind == "constant":
        return highest[:, None].expand(-1, frames)
    if frames == 0:
        return highest[:, None].expand(-1, 0)
    share = torch.linspace(1.0, 0.0, frames) if frames > 1 else torch.zeros(1)
    lowest = floor * highest
    return highest[:, None] + share.to(highest) * (lowest - highest)[:, None]


def reference_units(rank: int, call: int, longest: int, group: int) -> tuple[int, int, int]:
    """Units (low, mid, high) that the published trainer picks on `rank` at its `call`-th step (from 1).

    For comparison with runs of that trainer only: here units are planned globally, never by rank.
    """
    high = rank % group + 1 + group * (call % (longest // group))
    return 1 + longest - high, 1 + longest - high, high
