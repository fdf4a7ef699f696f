"""Public decoding: `decode_span` for a clip at a bucket's size and rate, `open_reader` for everything else."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dataprep.media.decord_reader import DecordReader
from dataprep.media.geometry import Box, Display, Frame, cover
from dataprep.media.geometry import crop as cut
from dataprep.media.reader import FrameReader, PyAvReader, sound
from dataprep.media.sampling import sample_frames
from dataprep.media.torchcodec_reader import TorchcodecReader

Backend = Literal["pyav", "pyav-once", "decord", "torchcodec"]
_READERS: dict[str, Callable[[Path], FrameReader]] = {
    "pyav": PyAvReader,
    "pyav-once": partial(PyAvReader, watched=False),
    "decord": DecordReader,
    "torchcodec": TorchcodecReader,
}


def open_reader(path: Path, backend: Backend = "pyav") -> FrameReader:
    """Raises ItemError with the reason why the file is no usable video."""
    return _READERS[backend](path)


def decode_span(
    path: Path,
    first_frame: int,
    frames: int,
    *,
    fps: float | Fraction,
    size: tuple[int, int],
    crop: tuple[int, int, int, int] | None = None,
    end_frame: int | None = None,
    backend: Backend = "pyav-once",
    deinterlace: bool = False,
) -> Frame:
    """`frames` pictures at `fps`, from source frame `first_frame`: uint8 (frames, height, width, 3) RGB.

    `size` is (height, width): the picture (after `crop`, a box x0, y0, x1, y1 of displayed pixels) is scaled to
    cover it and its centre is cut. Sample k is the source frame nearest in time to first + k / fps.
    `end_frame` (exclusive, a source frame) bounds the clip; `deinterlace` takes one field of each frame.
    Deterministic. The default backend takes the file for one that curation has looked through.
    Raises ItemError: too_short when the clip ends before the last sample, and every reason of the decoders.
    """
    reader = open_reader(path, backend)
    chosen = sample_frames(reader.index, first_frame, frames, fps, end_frame)
    wanted, places = np.unique(chosen, return_inverse=True)
    numbers = [int(w) for w in wanted]
    # The geometry is that of the wanted frames: in some files it changes in mid-stream.
    fits: dict[Display, _Fit] = {}

    def fit(display: Display) -> _Fit:
        if display not in fits:
            fits[display] = _Fit(display, Box(*crop) if crop else Box(0, 0, display.width, display.height), *size)
        return fits[display]

    shown = reader.shown(numbers, lambda display: fit(display).decoded, deinterlace=deinterlace)
    pictures = [fit(display).of(picture) for display, picture in sound(shown)]
    return np.stack([pictures[place] for place in places])


class _Fit:
    """Covers a bucket with the box of a displayed picture, scaling in the decoder where pictures shrink."""

    def __init__(self, display: Display, box: Box, height: int, width: int) -> None:
        if not (0 <= box.x0 < box.x1 <= display.width and 0 <= box.y0 < box.y1 <= display.height):
            raise ValueError(f"crop {tuple(box)} is not inside a frame of {display.width}x{display.height}")
        self._box, self._height, self._width = box, height, width
        scale = max(Fraction(height, box.height), Fraction(width, box.width))
        self.decoded: tuple[int, int] | None = None
        if scale < 1:
            self.decoded = (round(display.width * scale), round(display.height * scale))
            self._left = _window(box.x0 * scale, box.x1 * scale, width, self.decoded[0])
            self._top = _window(box.y0 * scale, box.y1 * scale, height, self.decoded[1])

    def of(self, picture: Frame) -> Frame:
        if self.decoded is None:
            return cover(cut(picture, self._box), self._height, self._width)
        return picture[self._top : self._top + self._height, self._left : self._left + self._width]


def _window(low: Fraction, high: Fraction, length: int, limit: int) -> int:
    """Begin of a window of `length` in the middle of low..high, inside 0..limit."""
    return min(max(0, round((low + high - length) / 2)), limit - length)
