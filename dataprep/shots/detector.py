"""The interface of shot detectors and the frames that they look at.

A detector gives each frame the probability that a boundary follows it. It sees `CONTEXT` frames on both
sides of what it judges, so a film judged in segments gives the values of a film judged in one piece.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

SHOT_HEIGHT, SHOT_WIDTH = 27, 48
CONTEXT = 25
STEP = 50  # segments begin at multiples of this

ShotFrames = NDArray[np.uint8]  # (frames, 27, 48, 3) RGB
Probabilities = NDArray[np.float32]  # (frames,)


class ShotDetector(Protocol):
    def boundaries(self, frames: ShotFrames, before: int, count: int) -> Probabilities:
        """Probabilities (count,) for `frames[before : before + count]`.

        The first of them is a multiple of `STEP` in the video. Fewer than `CONTEXT` frames before or after
        mean that the video begins or ends there.
        """


def shot_frame(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small: NDArray[np.uint8] = cv2.resize(frame, (SHOT_WIDTH, SHOT_HEIGHT), interpolation=cv2.INTER_AREA)
    return small


class NoDetector:
    """For collections that are cut already: no boundaries."""

    def boundaries(self, frames: ShotFrames, before: int, count: int) -> Probabilities:
        return np.zeros(count, dtype=np.float32)


def open_detector(name: str) -> ShotDetector:
    """`transnetv2`, `histogram` or `none`; raises InputError when the weights are not there."""
    if name == "transnetv2":
        from dataprep.shots.transnet import transnet

        return transnet()
    if name == "histogram":
        from dataprep.shots.histogram import HistogramDetector

        return HistogramDetector()
    return NoDetector()
