"""Public decoding: `decode_span` for a clip at a bucket's size and rate, `open_reader` for everything else."""

from __future__ import annotations

from collections.abc import Callable
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
    box = Box(*crop) if crop is not None else None
    pictures = [_fit(frame, box, size) for frame in reader.frames([int(w) for w in wanted])]
    return np.stack([pictures[place] for place in places])


def _fit(frame: Frame, box: Box | None, size: tuple[int, int]) -> Frame:
    return cover(frame if box is None else cut(frame, box), *size)
