"""Sigmas and timesteps of pyramidal flow matching, and the noise that joins two stages.

Stage 0 is the lowest resolution. Within a stage the local sigma r runs from 1 (stage start) to 0 (stage end).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from m4v.config import ScheduleConfig


class PyramidSchedule:
    """Tables of one ScheduleConfig.

    `original_start`, `start`, `end`: global sigma per stage, `start` corrected for the renoising (PyramidFlow
    appendix); `timesteps[i]`, `sigmas[i]`: what the model is fed, and the local sigma, at each training step.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        n, bounds = config.train_steps, config.stage_range
        base = np.arange(n, 0, -1, dtype=np.float32)
        linear = base / np.float32(n)
        shifted = config.shift * linear / (1 + (config.shift - 1) * linear)
        starts = [int(b * n) for b in bounds[:-1]]
        self.original_start = [float(shifted[index]) for index in starts]
        self.end = [*self.original_start[1:], 0.0]
        self.start = [1.0, *(self._corrected(s) for s in self.original_start[1:])]
        self.timestep_ratios = self._ratios()
        fed = shifted * np.float32(n)
        self.timesteps: list[Tensor] = []
        for low, high in self.timestep_ratios:
            first = float(fed[int(low * n)])
            last = float(fed[int(high * n)]) if high < 1.0 else float(fed[-1])
            # In float32 throughout: the reference's rounding, which reaches 1e-5 at the smallest timesteps.
            step = np.float32((np.float32(last) - np.float32(first)) / np.float32(n))
            self.timesteps.append(torch.from_numpy(np.float32(first) + np.arange(n, dtype=np.float32) * step))
        self.sigmas = [torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)[:-1] for _ in bounds[:-1]]

    @property
    def stages(self) -> int:
        return self.config.stages

    def _corrected(self, original: float) -> float:
        o, root = 1.0 - original, math.sqrt(1 + 1 / self.config.gamma)
        return 1.0 - o / (root * (1 - o) + o)

    def _ratios(self) -> list[tuple[float, float]]:
        """Share of the fed timesteps per stage, in proportion to the sigma it covers."""
        spans = [s - e for s, e in zip(self.start, self.end, strict=True)]
        edges = [0.0]
        for span in spans[:-1]:
            edges.append(edges[-1] + span / sum(spans))
        edges.append(1.0)
        return list(itertools.pairwise(edges))

    def renoise_factors(self, stage: int) -> tuple[float, float]:
        """(alpha, beta) for entering `stage` > 0: `x = alpha * upsampled + beta * block noise`."""
        o, gamma = 1.0 - self.original_start[stage], self.config.gamma
        alpha = 1.0 / (math.sqrt(1 + 1 / gamma) * (1 - o) + o)
        return alpha, alpha * (1 - o) / math.sqrt(gamma)

    def sampling(self, stage: int, steps: int) -> tuple[list[float], list[float]]:
        """Timesteps (n) to feed and local sigmas (n + 1, the last 0) for `steps` Euler steps."""
        table, sigma = self.timesteps[stage], self.sigmas[stage]
        timesteps = np.linspace(float(table[0]), float(table[-1]), steps)
        sigmas = np.linspace(float(sigma[0]), float(sigma[-1]), steps)
        return [float(t) for t in timesteps], [*(float(s) for s in sigmas), 0.0]


def block_noise(normal: Tensor, gamma: float) -> Tensor:
    """Correlated noise of the 2x2 blocks from a N(0, 1) tensor (b, c, t, h, w), h and w even.

    Each block is N(0, (1 + gamma) I - gamma 1 1^T): variance 1 + gamma off the block's mean and
    1 - 3 gamma along it. At gamma = 1/3 the covariance is singular and every block sums to zero exactly.
    """
    b, c, t, h, w = normal.shape
    blocks = normal.reshape(b, c, t, h // 2, 2, w // 2, 2)
    mean = blocks.mean(dim=(4, 6), keepdim=True)
    along = math.sqrt(max(0.0, 4 * (1 - 3 * gamma))) / 2
    noise = math.sqrt(1 + gamma) * (blocks - mean) + along * mean
    return noise.reshape(b, c, t, h, w)
