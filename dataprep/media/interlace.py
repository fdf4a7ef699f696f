"""Interlaced pictures: the comb they show in motion, and one field of a frame as a picture of its own."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

COMB_STRIDE = 16  # every sixteenth frame is looked at, with the one before it
_COLUMNS = 4  # every fourth column tells enough
_TOOTH = 12  # 8-bit steps by which a line must stand off both its neighbours, and have changed
_BLOCK = 16
_BLOCK_SHARE = 0.25  # of a block's pixels, from which the block is combed


def luma(frame: VideoFrame) -> NDArray[np.int16] | None:
    """Every fourth column of the luma plane in 8-bit steps; None for formats without a plane of luma."""
    form = frame.format
    if not form.is_planar or form.is_rgb or form.components[0].bits not in (8, 10, 12):
        return None
    plane = frame.planes[0]
    wide = form.components[0].bits > 8
    lines = np.frombuffer(bytes(plane), dtype=np.dtype("<u2" if wide else "u1")).reshape(frame.height, -1)
    values: NDArray[np.int16] = (lines[:, : frame.width : _COLUMNS] >> (form.components[0].bits - 8)).astype(np.int16)
    return values


def combed_share(now: NDArray[np.int16], before: NDArray[np.int16]) -> float:
    """Share of the moving blocks of a picture whose lines comb: 0 where nothing moves.

    A tooth is a pixel that stands off both the line above and the line below to the same side, while these two
    agree, where the picture has changed since the frame before: fine stripes that stand still are no comb.
    """
    if now.shape != before.shape or now.shape[0] < 3 * _BLOCK:
        return 0.0
    above, here, below = now[:-2], now[1:-1], now[2:]
    moved = np.abs(here - before[1:-1]) > _TOOTH
    up, down = here - above, here - below
    tooth = (np.minimum(np.abs(up), np.abs(down)) > _TOOTH) & (up * down.astype(np.int32) > 0)
    tooth &= (np.abs(above - below) <= _TOOTH) & moved
    active = _blocks(moved) >= _BLOCK_SHARE / 2
    if not active.any():
        return 0.0
    return float(np.mean(_blocks(tooth)[active] >= _BLOCK_SHARE / 2))


def _blocks(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of set pixels by block of 16 lines and 16 picture columns."""
    across = _BLOCK // _COLUMNS
    height, width = mask.shape[0] // _BLOCK * _BLOCK, mask.shape[1] // across * across
    blocks = mask[:height, :width].reshape(height // _BLOCK, _BLOCK, width // across, across)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float64)


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
    field.pts, field.time_base = frame.pts, frame.time_base
    field.colorspace, field.color_range = frame.colorspace, frame.color_range
    return field
