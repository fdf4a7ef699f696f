"""Anti-aliased resizing of frames that has a gradient, also where torch has no deterministic kernel of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]


def resize(frames: Tensor, size: tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """(B, C, H, W) to `size`; as two matrix products where torch has no deterministic gradient of it."""
    if not (frames.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.interpolate(frames, size, mode=mode, antialias=True, align_corners=False)
    return resize_by_products(frames, size, mode)


def resize_by_products(frames: Tensor, size: tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """What anti-aliased `interpolate` gives, which is linear and separable: rows, then columns."""

    def weights(before: int, after: int) -> Tensor:  # (after, before)
        unit = torch.eye(before)[None, None]
        return F.interpolate(unit, (after, before), mode=mode, antialias=True)[0, 0].to(frames)

    rows, columns = (weights(old, new) for old, new in zip(frames.shape[-2:], size, strict=True))
    return rows @ frames @ columns.T
