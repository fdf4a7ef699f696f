"""What decoded frames look like, as numbers that a hacked reward moves (eval_reward, hacking watch)."""

from __future__ import annotations

import torch
from torch import Tensor

_GRIDS = (8, 16)  # pixels of a latent place, and of the model's patch of 2 x 2 of them


def saturation(frames: Tensor) -> Tensor:
    """(b,) mean distance between the largest and the smallest channel of frames (b, 3, H, W) in [0, 1]."""
    return (frames.amax(1) - frames.amin(1)).mean((1, 2))


def contrast(frames: Tensor) -> Tensor:
    """(b,) standard deviation of the mean over channels."""
    return frames.mean(1).flatten(1).std(1)


def grid_energy(frames: Tensor) -> Tensor:
    """(b,) mean step across the lines of the latent and the patch grid over the mean step elsewhere: about 1 without
    a grid, whatever the picture; 0 for a flat one."""
    grey = frames.mean(1)
    found = []
    for grid in _GRIDS:
        on, off = torch.zeros(len(grey)).to(grey), torch.zeros(len(grey)).to(grey)
        lines, others = 0, 0
        for axis in (1, 2):
            steps = grey.diff(dim=axis).abs().movedim(axis, 1).flatten(2).mean(2)  # (b, side - 1)
            at = (torch.arange(1, steps.shape[1] + 1, device=steps.device) % grid) == 0
            on, off = on + steps[:, at].sum(1), off + steps[:, ~at].sum(1)
            lines, others = lines + int(at.sum()), others + int((~at).sum())
        if lines and others:
            found.append((on / lines) / (off / others).clamp_min(1e-6))
    return torch.stack(found).mean(0) if found else torch.zeros(len(grey)).to(grey)


def frame_difference(video: Tensor) -> Tensor:
    """(b,) mean absolute difference of neighbouring frames of (b, 3, T, H, W); none for a single frame."""
    return video.diff(dim=2).abs().flatten(1).mean(1) if video.shape[2] > 1 else video.new_zeros(0)


def similarity(features: Tensor) -> Tensor:
    """(b,) mean cosine of each row of unit vectors (b, d) with the others; none for a single row."""
    count = len(features)
    if count < 2:
        return features.new_zeros(0)
    cosines = features @ features.T
    return (cosines.sum(1) - cosines.diagonal()) / (count - 1)
