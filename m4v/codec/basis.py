"""The orthonormal basis behind the transform codec: opponent colours x DCT-II in time, height and width.

Torch-free. The 16 functions of each kind of unit stand in `dct_tables.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m4v.codec.shape import SPATIAL

Matrix = npt.NDArray[np.float64]

COLOURS = ("luma", "green-magenta", "red-blue")
# Rows are orthonormal, so that cutting coefficients is a projection in RGB. BT.601 YCbCr has axes of the same
# meaning that are not: with it the same coefficients lose up to 0.5 dB (film, street, photos, shapes).
OPPONENT: Matrix = np.array([[1, 1, 1], [-1, 2, -1], [1, 0, -1]]) / np.sqrt([[3], [6], [2]])


class BasisFunction(NamedTuple):
    """One channel: colour axis, DCT frequencies in time, height and width, and the mean and standard
    deviation of its coefficient on natural footage with pixels in [-1, 1]."""

    colour: int
    time: int
    vertical: int
    horizontal: int
    mean: float
    std: float


def dct_matrix(size: int) -> Matrix:
    """Orthonormal DCT-II: row k is the k-th cosine."""
    k, i = np.arange(size)[:, None], np.arange(size)[None]
    rows: Matrix = np.sqrt(np.where(k == 0, 1, 2) / size) * np.cos(np.pi * (i + 0.5) * k / size)
    return rows


def analysis(functions: Sequence[BasisFunction], frames: int) -> Matrix:
    """(n, frames * 8 * 8 * 3): rows give the coefficients of a block flattened as (time, y, x, RGB)."""
    temporal, spatial = dct_matrix(frames), dct_matrix(SPATIAL)
    rows = [
        np.einsum("t,y,x,c->tyxc", temporal[f.time], spatial[f.vertical], spatial[f.horizontal], OPPONENT[f.colour])
        for f in functions
    ]
    return np.stack(rows).reshape(len(rows), -1)


def group_blocks(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(T, H, W, 3) to (H/8 * W/8, T * 8 * 8 * 3): one row a block."""
    t, height, width, _ = frames.shape
    blocks = frames.reshape(t, height // SPATIAL, SPATIAL, width // SPATIAL, SPATIAL, 3)
    return blocks.transpose(1, 3, 0, 2, 4, 5).reshape(-1, t * SPATIAL * SPATIAL * 3)
