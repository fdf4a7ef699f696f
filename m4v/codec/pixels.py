"""Pixels as codecs give them: [0, 1] for gradients, bytes for files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from m4v.codec.interface import Frames, Latent
from m4v.codec.shape import CHANNELS


class _StraightThroughClamp(torch.autograd.Function):
    """Clamp to [0, 1] whose gradient is one everywhere: a reward can still pull back a saturated pixel."""

    @staticmethod
    def forward(ctx: FunctionCtx, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def to_unit(decoded: Tensor) -> Tensor:
    """Decoded pixels, about [-1, 1], to [0, 1] in fp32; the gradient goes straight through the clamp."""
    pixels: Tensor = _StraightThroughClamp.apply((decoded.float() + 1) / 2)  # type: ignore[no-untyped-call]
    return pixels


def to_frames(pixels: Tensor) -> Frames:
    """(3, T, H, W) in [0, 1] to uint8 (T, H, W, 3), rounded to the nearest.

    PyramidFlow's own script cuts off instead, which darkens a picture by half a level.
    """
    video = (pixels * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    return np.ascontiguousarray(video.cpu().numpy())


def check_frames(frames: Frames) -> None:
    """Raises ValueError unless `frames` is uint8 (T, H, W, 3)."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")


def as_tensor(latent: Latent | Tensor) -> Tensor:
    """A latent, NumPy or torch, as a tensor; raises ValueError unless it is (16, t, h, w) with t >= 1."""
    tensor = latent if isinstance(latent, Tensor) else torch.from_numpy(np.ascontiguousarray(latent))
    if tensor.ndim != 4 or tensor.shape[0] != CHANNELS or not tensor.numel():
        raise ValueError(f"a latent must be ({CHANNELS}, t, h, w), not {tuple(tensor.shape)}")
    return tensor


def check_latents(latents: Tensor, context: int) -> None:
    """Raises ValueError unless `latents` is (b, 16, t, h, w) with more than `context` latent frames."""
    if latents.ndim != 5 or latents.shape[1] != CHANNELS or not latents.numel():
        raise ValueError(f"latents must be (b, {CHANNELS}, t, h, w), not {tuple(latents.shape)}")
    if not 0 <= context < latents.shape[2]:
        raise ValueError(f"context must leave at least one of {latents.shape[2]} latents, not {context}")
