"""The frames that a sampler has made so far, at the sizes that later frames look at."""

from __future__ import annotations

import torch
from torch import Tensor

from m4v.flow.latents import pyramid
from m4v.flow.packing import history_shape


class FrameHistory:
    """Normalised frames (b, c, 1, h, w), each scaled once.

    The lowest size is kept of all frames, a size k stages above it of the newest `stages - k` alone
    (`history_shape`), so a frame more costs 1/16 of its latent with three stages.
    """

    def __init__(self, stages: int) -> None:
        self.count = 0
        self._levels: list[list[Tensor]] = [[] for _ in range(stages)]

    def add(self, frame: Tensor) -> None:
        stages = len(self._levels)
        for level, (kept, scaled) in enumerate(zip(self._levels, pyramid(frame, stages), strict=True)):
            kept.append(scaled)
            if level > 0:
                del kept[: level - stages]
        self.count += 1

    def clips(self, stage: int) -> list[Tensor]:
        """Clean history clips for the next frame at `stage`, oldest first (see `history_clips`)."""
        found, begin = [], 0
        for size, frames in history_shape(stage, self.count + 1):
            kept = self._levels[size]
            first = begin - (self.count - len(kept))
            found.append(torch.cat(kept[first : first + frames], dim=2))
            begin += frames
        return found
