"""Normalisation of codec latents and their resolution pyramid (PyramidFlow).

The first latent frame holds one pixel frame and the others eight, so their statistics differ.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FIRST_SHIFT, FIRST_SCALE = -0.04, 1.8726
OTHER_SHIFT, OTHER_SCALE = -0.2343, 3.0986


def normalise(latents: Tensor) -> Tensor:
    """Codec latents (b, c, t, h, w) to about unit variance; frame 0 has constants of its own."""
    first = (latents[:, :, :1] - FIRST_SHIFT) / FIRST_SCALE
    others = (latents[:, :, 1:] - OTHER_SHIFT) / OTHER_SCALE
    return torch.cat([first, others], dim=2)


def denormalise(latents: Tensor) -> Tensor:
    """Inverse of `normalise`."""
    first = latents[:, :, :1] * FIRST_SCALE + FIRST_SHIFT
    others = latents[:, :, 1:] * OTHER_SCALE + OTHER_SHIFT
    return torch.cat([first, others], dim=2)


def denormalise_frame(frame: Tensor, index: int) -> Tensor:
    """`denormalise` of one frame (b, c, 1, h, w), the `index`-th of its video."""
    scale, shift = (FIRST_SCALE, FIRST_SHIFT) if index == 0 else (OTHER_SCALE, OTHER_SHIFT)
    return frame * scale + shift


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
