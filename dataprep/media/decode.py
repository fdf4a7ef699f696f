"""Public decoding: `decode_span` for a clip at a bucket's size and rate, `open_reader` for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from dataprep.media.decord_reader import DecordReader
from dataprep.media.geometry import Box, Frame, cover
from dataprep.media.geometry import crop as cut
from dataprep.media.reader import FrameReader, PyAvReader
from dataprep.media.sampling import sample_frames

Backend = Literal["pyav", "decord"]
_READERS: dict[str, Callable[[Path], FrameReader]] = {"pyav": PyAvReader, "decord": DecordReader}


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
    backend: Backend = "pyav",
) -> Frame:
    """`frames` pictures at `fps`, from source frame `first_frame`: uint8 (frames, height, width, 3) RGB.

    `size` is (height, width): the picture (after `crop`, a box x0, y0, x1, y1 of displayed pixels) is scaled to
    cover it and its centre is cut. Sample k is the source frame nearest in time to first + k / fps.
    `end_frame` (exclusive, a source frame) bounds the clip. Deterministic.
    Raises ItemError: too_short when the clip ends before the last sample, and every reason of the decoders.
    """
    reader = open_reader(path, backend)
    chosen = sample_frames(reader.index, first_frame, frames, fps, end_frame)
    wanted, places = np.unique(chosen, return_inverse=True)
    shown = reader.display
    box = Box(*crop) if crop is not None else Box(0, 0, shown.width, shown.height)
    if not (0 <= box.x0 < box.x1 <= shown.width and 0 <= box.y0 < box.y1 <= shown.height):
        raise ValueError(f"crop {tuple(box)} is not inside a frame of {shown.width}x{shown.height}")
    pictures = list(_fitted(reader, [int(w) for w in wanted], box, *size))
    return np.stack([pictures[place] for place in places])


def _fitted(reader: FrameReader, wanted: list[int], box: Box, height: int, width: int) -> Iterator[Frame]:
    scale = max(Fraction(height, box.height), Fraction(width, box.width))
    if scale >= 1:
        yield from (cover(cut(frame, box), height, width) for frame in reader.frames(wanted))
        return
    scaled = (round(reader.display.width * scale), round(reader.display.height * scale))
    left = _window(box.x0 * scale, box.x1 * scale, width, scaled[0])
    top = _window(box.y0 * scale, box.y1 * scale, height, scaled[1])
    for frame in reader.frames(wanted, scaled):
        yield frame[top : top + height, left : left + width]


def _window(low: Fraction, high: Fraction, length: int, limit: int) -> int:
    """Begin of a window of `length` in the middle of low..high, inside 0..limit."""
    return min(max(0, round((low + high - length) / 2)), limit - length)
