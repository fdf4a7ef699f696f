"""Normalisation of codec latents, by PyramidFlow's constants or the codec's own, and their resolution pyramid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.codec.constants import PYRAMID_CONSTANTS, Affine, LatentConstants, Numbers

FIRST_SHIFT, FIRST_SCALE = PYRAMID_CONSTANTS.first
OTHER_SHIFT, OTHER_SCALE = PYRAMID_CONSTANTS.others


def normalise(latents: Tensor, constants: LatentConstants = PYRAMID_CONSTANTS) -> Tensor:
    """Codec latents (b, c, t, h, w) to about unit variance; frame 0 has constants of its own."""
    return torch.cat(
        [_without(latents[:, :, :1], constants.first), _without(latents[:, :, 1:], constants.others)], dim=2
    )


def denormalise(latents: Tensor, constants: LatentConstants = PYRAMID_CONSTANTS) -> Tensor:
    """Inverse of `normalise`."""
    return torch.cat([_with(latents[:, :, :1], constants.first), _with(latents[:, :, 1:], constants.others)], dim=2)


def denormalise_frame(frame: Tensor, index: int, constants: LatentConstants = PYRAMID_CONSTANTS) -> Tensor:
    """`denormalise` of one frame (b, c, 1, h, w), the `index`-th of its video."""
    return _with(frame, constants.first if index == 0 else constants.others)


def _without(latents: Tensor, affine: Affine) -> Tensor:
    return (latents - _along(affine.shift, latents)) / _along(affine.scale, latents)


def _with(latents: Tensor, affine: Affine) -> Tensor:
    return latents * _along(affine.scale, latents) + _along(affine.shift, latents)


def _along(numbers: Numbers, latents: Tensor) -> Tensor | float:
    """A number stays one, which rounds as it always did; one for each channel lies along the channels."""
    if not isinstance(numbers, tuple):
        return numbers
    return torch.tensor(numbers, dtype=latents.dtype, device=latents.device).reshape(-1, 1, 1, 1)


def halve(latents: Tensor) -> Tensor:
    """Half the height and width: bilinear without aligned corners, which is the mean of each 2x2 block."""
    b, c, t, h, w = latents.shape
    if h % 2 or w % 2:
        raise ValueError(f"cannot halve latents of {h} x {w}")
    return F.avg_pool2d(latents.reshape(b, c * t, h, w), 2).reshape(b, c, t, h // 2, w // 2)


def double(latents: Tensor) -> Tensor:
    """Twice the height and width by nearest neighbour."""
    return latents.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def pyramid(latents: Tensor, levels: int = 3) -> list[Tensor]:
    """The latents at each stage's resolution, lowest first."""
    found = [latents]
    while len(found) < levels:
        found.insert(0, halve(found[0]))
    return found


def noise_at(noise: Tensor, stage: int, levels: int = 3) -> Tensor:
    """Full-size N(0, 1) noise brought to a stage's size; doubling after each halving keeps variance 1."""
    for _ in range(levels - 1 - stage):
        noise = halve(noise) * 2
    return noise
