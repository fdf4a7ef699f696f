"""Picture geometry: display matrices, square pixels, crops, and cover-resizing to a bucket."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

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
    """From coded to displayed pixels: a mirror (left to right), a counter-clockwise turn, then square pixels."""

    coded_width: int
    coded_height: int
    rotation: int  # degrees counter-clockwise, one of 0, 90, 180, 270
    sample_aspect: Fraction
    mirrored: bool = False
    skew: float = 0.0  # degrees between what the file asks for and the nearest quarter turn, which is taken

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

    def sized(self, size: Size) -> tuple[int, int]:
        """(width, height) as given, or of the display where None, or shrunk to a long side; never enlarged by that."""
        if callable(size):
            size = size(self)
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


# A long side to shrink to, or (width, height), or as displayed; or what a function of the geometry says.
Size = int | tuple[int, int] | None | Callable[[Display], tuple[int, int] | None]


def display_of(width: int, height: int, matrix: bytes | None = None, sample_aspect: Fraction | None = None) -> Display:
    """`matrix` is a display matrix as FFmpeg hands it out: nine little-endian 32-bit numbers.

    An angle between quarter turns is taken to the nearest one. Absurd pixel shapes count as square.
    """
    aspect = sample_aspect if sample_aspect else Fraction(1)
    if not Fraction(1, 8) <= aspect <= 8:
        aspect = Fraction(1)
    rotation, mirrored, skew = _turn(matrix)
    return Display(width, height, rotation, aspect, mirrored, skew)


def _turn(matrix: bytes | None) -> tuple[int, bool, float]:
    """Quarter turn counter-clockwise after mirroring, whether to mirror, and the angle that is left over."""
    if matrix is None or len(matrix) < 36:
        return 0, False, 0.0
    a, b, _, c, d = struct.unpack("<5i", matrix[:20])
    if a * d == b * c:
        return 0, False, 0.0  # not invertible: nothing could be seen
    # A point (x, y), y down, goes to (a x + c y, b x + d y); mirroring first negates what x contributes.
    mirrored = a * d - b * c < 0
    angle = math.degrees(math.atan2(b, -a)) if mirrored else math.degrees(math.atan2(-b, a))
    turns = round(angle / 90)
    return 90 * (turns % 4), mirrored, round(angle - 90 * turns, 3)


def orient(frame: Frame, display: Display) -> Frame:
    """Mirror and turn coded pixels upright."""
    if display.mirrored:
        frame = frame[:, ::-1]
    if display.rotation:
        frame = np.rot90(frame, display.rotation // 90)
    return np.ascontiguousarray(frame)


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
