"""A cheap detector of cuts and fades: colour histograms and pixel differences against their neighbourhood.

It needs no weights and about a fiftieth of TransNetV2's time. Dissolves escape it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataprep.shots.detector import Probabilities, ShotFrames

_BINS = 8  # a colour channel
_NEIGHBOURS = 8  # frames on either side that say what is usual
_SURE_CHANGE = 0.30  # a change of this size, in a calm neighbourhood, is certainly a cut
_SURE_RATIO = 5.0  # times the usual change
_NOISE = 0.01
_BLACK_MEAN, _BLACK_SPREAD = 14.0, 10.0  # of 255


class HistogramDetector:
    def boundaries(self, frames: ShotFrames, before: int, count: int) -> Probabilities:
        change = frame_changes(frames)
        cuts = np.zeros(count, dtype=np.float32)
        black = _is_black(frames)
        for k in range(count):
            place = before + k
            if place < len(change):
                cuts[k] = _cut_probability(change, place)
            if black[place]:  # the dark middle of a fade belongs to neither side
                cuts[k] = 1.0
        return cuts


def frame_changes(frames: ShotFrames) -> NDArray[np.float64]:
    """Change from each frame to the next, in [0, 1]: (frames - 1,). Mean of histogram and pixel distance."""
    if len(frames) < 2:
        return np.zeros(0)
    codes = (frames // (256 // _BINS)).astype(np.int64)
    codes = (codes[..., 0] * _BINS + codes[..., 1]) * _BINS + codes[..., 2]
    histograms = np.stack([np.bincount(c.ravel(), minlength=_BINS**3) for c in codes]) / codes[0].size
    colour = np.abs(np.diff(histograms, axis=0)).sum(axis=1) / 2
    pixels = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)) / 255
    return np.asarray((colour + np.minimum(1.0, 4 * pixels)) / 2)


def _cut_probability(change: NDArray[np.float64], place: int) -> float:
    """High where the change is large in itself and against what is usual around it."""
    around = np.concatenate([change[max(0, place - _NEIGHBOURS) : place], change[place + 1 : place + 1 + _NEIGHBOURS]])
    usual = float(np.mean(around)) if len(around) else 0.0
    ratio = change[place] / (usual + _NOISE)
    return float(min(1.0, change[place] / _SURE_CHANGE) * min(1.0, ratio / _SURE_RATIO))


def _is_black(frames: ShotFrames) -> NDArray[np.bool_]:
    flat = frames.reshape(len(frames), -1)
    return np.asarray((flat.mean(axis=1) < _BLACK_MEAN) & (flat.std(axis=1) < _BLACK_SPREAD))
