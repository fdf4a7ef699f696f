"""One-step estimate of the clean latent from a predicted velocity (paper eq. 5, for reward post-training)."""

from __future__ import annotations

from torch import Tensor

from m4v.flow.packing import PackedColumn
from m4v.flow.schedule import PyramidSchedule


def clean_estimate(schedule: PyramidSchedule, column: PackedColumn, prediction: Tensor) -> Tensor:
    """Normalised clean latent of the noisy clip at its stage's size.

    Going the rest of the stage gives its end point `x - r v`; that still holds the share `end` of the
    stage's noise, which is known in training and taken out. The highest stage ends at zero noise.
    """
    noisy, end = column.clips[-1], schedule.end[column.stage]
    r = column.sigma.to(noisy.dtype).reshape(-1, 1, 1, 1, 1)
    stage_end = noisy - r * prediction
    return stage_end if end == 0.0 else (stage_end - end * column.noise) / (1 - end)
