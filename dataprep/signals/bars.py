"""Black bars beside a picture: on one frame, and followed over the frames of a film.

Lines are rows or columns, told from the side inwards; shares are of that side's length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataprep.media.geometry import Box

DARK = 26  # luma below which a pixel is dark
BLACK_SHARE = 0.98  # of dark pixels, from which a frame is black (as in FFmpeg's blackdetect)
BAR_MIN = 0.02  # share of the side below which a dark margin is no bar
BAR_UNEVEN = 0.03  # opposite bars of a letterbox are equal
_BAR_MEAN, _BAR_PEAK, _EDGE_LUMA, _EDGE_SHARE = 20, 48, 40, 0.5
_NONE = (0, 0)

Grey = NDArray[np.uint8]


def bars(grey: Grey) -> tuple[float, float, float, float]:
    """Black bars (top, bottom, left, right) as shares of the side; NaN when the whole frame is dark.

    A bar must end at an edge: a line of picture, lit over at least half of its length. A night sky does not.
    """
    return _shares(_margins(grey), grey.shape)


class BarTracker:
    """The picture inside its bars, frame by frame.

    A bar begins where a frame shows its edge, and lasts while its lines stay black: a dark scene, whose edge nobody
    sees, is measured inside the bars of the scene around it.
    """

    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = [_NONE, _NONE]  # lines at top and bottom, at left and right
        self._shape: tuple[int, ...] = ()

    def add(self, grey: Grey) -> tuple[tuple[float, float, float, float], Box]:
        """The next frame's bars as of `bars`, and the picture inside those that hold here, in its own pixels."""
        if grey.shape != self._shape:
            self._held, self._shape = [_NONE, _NONE], grey.shape
        margins = _margins(grey)
        if margins is not None:
            self._held = [
                _held(before, margins[2 * axis], margins[2 * axis + 1], grey.shape[axis])
                for axis, before in enumerate(self._held)
            ]
        (top, bottom), (left, right) = self._held
        return _shares(margins, grey.shape), Box(left, top, grey.shape[1] - right, grey.shape[0] - bottom)


_Margin = tuple[int, bool]  # black lines from a side on, and whether a lit edge ends them


def _margins(grey: Grey) -> list[_Margin] | None:
    """Of top, bottom, left, right; None for a black frame."""
    if np.mean(grey < DARK) >= BLACK_SHARE:
        return None
    return [_margin(side) for side in (grey, grey[::-1], grey.T, grey.T[::-1])]


def _margin(lines: Grey) -> _Margin:
    picture = (lines.mean(axis=1) >= _BAR_MEAN) | (lines.max(axis=1) >= _BAR_PEAK)
    depth = int(np.argmax(picture))
    if depth == 0 or depth + 1 >= len(lines):
        return 0, False
    # One line may be a blend of bar and picture, so the edge may be the next one.
    lit = max(float(np.mean(lines[k] >= _EDGE_LUMA)) for k in (depth, depth + 1))
    return depth, lit >= _EDGE_SHARE


def _shares(margins: list[_Margin] | None, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    if margins is None:
        return (np.nan,) * 4
    top, bottom, left, right = (depth / shape[place // 2] if lit else 0.0 for place, (depth, lit) in enumerate(margins))
    return top, bottom, left, right


def _held(before: tuple[int, int], first: _Margin, last: _Margin, side: int) -> tuple[int, int]:
    """A pair of bars, with the line beside each that may be a blend of bar and picture."""
    still = tuple(min(old, depth + 1) for old, (depth, _) in zip(before, (first, last), strict=True))
    seen = (first[0] + 1, last[0] + 1) if first[1] and last[1] else _NONE
    if not _is_pair(seen, side):
        seen = _NONE
    pair = (max(still[0], seen[0]), max(still[1], seen[1]))
    return pair if _is_pair(pair, side) else _NONE


def _is_pair(pair: tuple[int, int], side: int) -> bool:
    return min(pair) - 1 >= BAR_MIN * side and abs(pair[0] - pair[1]) <= BAR_UNEVEN * side
