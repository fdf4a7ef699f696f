"""Block artefacts of strong compression: the 8x8 grid of the transform, seen as edges in flat parts of the picture.

A no-reference measure after the idea of Wang, Bovik and Evans (2000) and of Muijs and Kirenko (2005): how much steeper
luma is across the lines of a grid than beside them. Here it is made robust by medians, and needs no known grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from dataprep.media.interlace import luma_plane

BLOCK_STRIDE = 8  # every eighth frame is looked at
_GRID = 8
_MIN_LINES = 3 * _GRID
_SAMPLED = 4  # every fourth pixel along an edge tells enough
_FLOOR = 0.5  # 8-bit steps: edges far below one step are seen by nobody


def blockiness(plane: NDArray[np.uint8 | np.uint16], bits: int = 8) -> float:
    """How blocky a luma plane (h, w) is: about 1 where there is no grid, 2 where luma changes twice as much across
    the lines of one as beside them. NaN for a picture of less than three blocks a side.

    For each of the eight places that a grid may have, the step between neighbouring pixels is averaged along every
    line there, and the median of these lines taken: single edges, bars and titles do not count. The score is the
    steepest place against the second, so that a pattern of four or two pixels is none; of both directions the
    smaller one, so that a fence is none.
    """
    if min(plane.shape) < _MIN_LINES:
        return float("nan")
    scale = float(1 << (bits - 8))
    return min(_ratio(plane, scale), _ratio(plane.T, scale))


def _ratio(plane: NDArray[np.uint8 | np.uint16], scale: float) -> float:
    """Of the lines between columns."""
    rows = plane[::_SAMPLED].astype(np.int32)
    steps = np.abs(np.diff(rows, axis=1)).mean(axis=0) / scale
    second, first = np.sort([np.median(steps[place::_GRID]) for place in range(_GRID)])[-2:]
    return float((first + _FLOOR) / (second + _FLOOR))


def frame_blockiness(frame: VideoFrame) -> float:
    """Of a decoder frame as coded."""
    plane = luma_plane(frame)
    if plane is not None:
        return blockiness(plane, frame.format.components[0].bits)
    exact = Interpolation.ACCURATE_RND | Interpolation.BITEXACT  # the same value on every processor
    grey: Any = VideoReformatter().reformat(frame, format="gray", interpolation=exact, threads=1)
    return blockiness(grey.to_ndarray())
