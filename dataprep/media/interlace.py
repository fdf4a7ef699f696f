"""Interlaced pictures: the comb they show in motion, and one field of a frame as a picture of its own."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

COMB_STRIDE = 16  # every sixteenth frame is looked at, with the one before it
_COLUMNS = 4  # every fourth column tells enough
_TOOTH = 12  # 8-bit steps by which a line must stand off both its neighbours, and have changed
_MIN_LINES = 16
_MIN_MOVED = 0.005  # share of the pixels
_MIN_TEETH = 0.06  # share of the moved pixels below which teeth are noise and fine texture


def luma_plane(frame: VideoFrame) -> NDArray[np.uint8 | np.uint16] | None:
    """The luma plane as coded, and so upside up or not; None for formats without one."""
    form = frame.format
    if not form.is_planar or form.is_rgb or form.components[0].bits not in (8, 10, 12):
        return None
    kind = np.dtype("<u2" if form.components[0].bits > 8 else "u1")
    lines = np.frombuffer(memoryview(frame.planes[0]), dtype=kind).reshape(frame.height, -1)
    return lines[:, : frame.width]


def luma(frame: VideoFrame) -> NDArray[np.int16] | None:
    """Every fourth column of the luma plane in 8-bit steps; None for formats without a plane of luma."""
    plane = luma_plane(frame)
    if plane is None:
        return None
    columns, depth = plane[:, ::_COLUMNS], frame.format.components[0].bits
    return (columns if depth == 8 else columns >> (depth - 8)).astype(np.int16)


def combing(now: NDArray[np.int16], before: NDArray[np.int16]) -> float:
    """How much a frame combs, against itself woven with the frame before it: near 0 where it is of one moment,
    about 1 where its own fields are as far apart in time as those of neighbours; 0 where little moves.
    """
    if now.shape != before.shape or len(now) < _MIN_LINES:
        return 0.0
    moved = np.abs(now - before) > _TOOTH
    if np.mean(moved) < _MIN_MOVED:
        return 0.0
    teeth = _teeth(now, moved)
    if teeth < _MIN_TEETH * int(np.count_nonzero(moved)):
        return 0.0
    upper, lower = now.copy(), now.copy()
    upper[0::2], lower[1::2] = before[0::2], before[1::2]
    # Fields further apart in time than frames are no more than wholly combed.
    return min(1.0, teeth / max(1, min(_teeth(upper, moved), _teeth(lower, moved))))


def _teeth(lines: NDArray[np.int16], moved: NDArray[np.bool_]) -> int:
    """Pixels that stand off the line above and the line below to the same side, while these two agree."""
    above, here, below = lines[:-2], lines[1:-1], lines[2:]
    up, down = here - above, here - below
    tooth = (np.minimum(np.abs(up), np.abs(down)) > _TOOTH) & ((up > 0) == (down > 0))
    return int(np.count_nonzero(tooth & (np.abs(above - below) <= _TOOTH) & moved[1:-1]))


def first_field(frame: VideoFrame) -> VideoFrame:
    """The upper field alone: a picture of half the lines, of one moment in time."""
    field = VideoFrame(frame.width, -(-frame.height // 2), frame.format.name)
    for source, target in zip(frame.planes, field.planes, strict=True):
        lines = np.frombuffer(bytes(source), np.uint8).reshape(-1, source.line_size)[: source.height : 2]
        out = np.zeros((target.height, target.line_size), np.uint8)
        width = min(source.line_size, target.line_size)
        rows = min(len(lines), target.height)
        out[:rows, :width] = lines[:rows, :width]
        out[rows:] = out[rows - 1]
        target.update(out.tobytes())
    field.colorspace, field.color_range = frame.colorspace, frame.color_range
    return field
