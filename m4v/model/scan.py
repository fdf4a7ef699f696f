"""The eight spatial scan paths (paper A.1, Figure 6) on a grid of tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ScanPath(NamedTuple):
    """Start corner and whether the first direction is vertical."""

    bottom: bool
    right: bool
    vertical: bool


PATHS: dict[str, ScanPath] = {
    "a": ScanPath(bottom=False, right=False, vertical=True),
    "b": ScanPath(bottom=False, right=False, vertical=False),
    "c": ScanPath(bottom=True, right=False, vertical=True),
    "d": ScanPath(bottom=True, right=False, vertical=False),
    "e": ScanPath(bottom=True, right=True, vertical=True),
    "f": ScanPath(bottom=True, right=True, vertical=False),
    "g": ScanPath(bottom=False, right=True, vertical=True),
    "h": ScanPath(bottom=False, right=True, vertical=False),
}
# Block i scans by letter i mod 8: the order of zigma's list, which the paper cites.
LAYER_ORDER = "bahgdcfe"


@lru_cache(maxsize=4096)
def scan_order(
    letter: str, height: int, width: int, kind: Literal["serpentine", "raster"] = "serpentine"
) -> NDArray[np.int64]:
    """Row-major cells of a height x width grid in visiting order.

    `serpentine` turns round at the end of each line (as zigma does); `raster` runs every line the same way.
    """
    path = PATHS[letter]
    grid = np.arange(height * width, dtype=np.int64).reshape(height, width)
    if path.bottom:
        grid = grid[::-1]
    if path.right:
        grid = grid[:, ::-1]
    lines = (grid.T if path.vertical else grid).copy()
    if kind == "serpentine":
        lines[1::2] = lines[1::2, ::-1].copy()
    order = lines.reshape(-1)
    order.setflags(write=False)
    return order
