"""Picture geometry: rotation flags, square pixels, crops, and cover-resizing to a bucket."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataprep.quarantine import ItemError, Reason

Frame = NDArray[np.uint8]  # (h, w, 3) RGB


class Box(NamedTuple):
    """Half-open pixel box of displayed pixels."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0


class Display(NamedTuple):
    """From coded to displayed pixels: rotation counter-clockwise in quarter turns, then square pixels."""

    coded_width: int
    coded_height: int
    rotation: int  # degrees counter-clockwise, one of 0, 90, 180, 270
    sample_aspect: Fraction

    @property
    def width(self) -> int:
        return self._size[0]

    @property
    def height(self) -> int:
        return self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        # Non-square pixels are stretched along their long side: nothing is thrown away.
        width, height = Fraction(self.coded_width), Fraction(self.coded_height)
        if self.sample_aspect > 1:
            width *= self.sample_aspect
        else:
            height /= self.sample_aspect
        size = (max(1, round(width)), max(1, round(height)))
        return size if self.rotation % 180 == 0 else (size[1], size[0])

    def sized(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) as given, or of the display where None, or shrunk to a long side; never enlarged by that."""
        if size is None:
            return self.width, self.height
        if not isinstance(size, int):
            return size
        return self._shrunk(size)

    def _shrunk(self, long_side: int) -> tuple[int, int]:
        scale = min(Fraction(1), Fraction(long_side, max(self.width, self.height)))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def coded(self, width: int, height: int) -> tuple[int, int]:
        """The size before rotation of a displayed size."""
        return (width, height) if self.rotation % 180 == 0 else (height, width)


def display_of(width: int, height: int, rotation: float, sample_aspect: Fraction | None) -> Display:
    """Raises ItemError `unsupported` for a rotation that is no quarter turn."""
    turns = round(rotation / 90)
    if abs(rotation - 90 * turns) > 1:
        raise ItemError(Reason.UNSUPPORTED, f"display rotation of {rotation:g} degrees")
    aspect = sample_aspect if sample_aspect else Fraction(1)
    if not Fraction(1, 8) <= aspect <= 8:
        aspect = Fraction(1)
    return Display(width, height, 90 * (turns % 4), aspect)


def rotate(frame: Frame, rotation: int) -> Frame:
    """Turn counter-clockwise by quarter turns."""
    return np.ascontiguousarray(np.rot90(frame, rotation // 90)) if rotation else frame


def resize(frame: Frame, width: int, height: int) -> Frame:
    """Area average when both sides shrink, bicubic otherwise."""
    if frame.shape[1] == width and frame.shape[0] == height:
        return frame
    shrinks = width <= frame.shape[1] and height <= frame.shape[0]
    resized: Frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized


def cover(frame: Frame, height: int, width: int) -> Frame:
    """Scale by the larger ratio so that (height, width) is covered, then cut the centre; nothing is stretched."""
    source_height, source_width = frame.shape[:2]
    scale = max(Fraction(height, source_height), Fraction(width, source_width))
    scaled = resize(frame, max(width, round(source_width * scale)), max(height, round(source_height * scale)))
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return scaled[top : top + height, left : left + width]


def crop(frame: Frame, box: Box) -> Frame:
    """Cut a box of displayed pixels; raises ValueError when it does not lie inside the frame."""
    height, width = frame.shape[:2]
    if not (0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height):
        raise ValueError(f"crop {tuple(box)} is not inside a frame of {width}x{height}")
    return frame[box.y0 : box.y1, box.x0 : box.x1]
