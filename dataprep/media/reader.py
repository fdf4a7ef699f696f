"""Random access to displayed frames: the reader interface and the backend that the product uses by default.

Wanted frames are visited in order and each group of pictures is decoded once; a span in a long film costs the
decoding from the key frame before it, not from the start.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dataprep.media.blocks import BLOCK_STRIDE, frame_blockiness
from dataprep.media.container import decoding, open_video
from dataprep.media.convert import Picture, display_matrix, frame_display
from dataprep.media.geometry import Display, Frame, Size, display_of
from dataprep.media.index import FrameIndex, frame_index
from dataprep.media.interlace import COMB_STRIDE, combing, luma
from dataprep.media.pictures import pictures
from dataprep.media.walk import Count, Walk
from dataprep.quarantine import ItemError, Reason

__all__ = ["FrameReader", "PyAvReader", "Shown", "display", "first_frame"]


class Shown(NamedTuple):
    """One wanted frame. `picture` is None where the file is damaged; `combed` and `blocky` are NaN where it was not
    looked at."""

    number: int
    picture: Frame | None
    display: Display
    interlaced: bool = False  # as the stream says
    combed: float = float("nan")  # as of `interlace.combing`
    blocky: float = float("nan")  # as of `blocks.blockiness`


class FrameReader(Protocol):
    """Displayed RGB frames by number: upright, pixels square, BT.709, opaque."""

    index: FrameIndex
    display: Display  # of the first frame

    def shown(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Shown]:
        """The wanted frames, numbers increasing, scaled to `size`; pictures are uint8 (h, w, 3).

        Each frame has the size of its own: one may change in mid-stream.
        """

    def frames(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Frame]:
        """As `shown`, all sound and of one size. Raises ItemError: decode_error, size_change."""


def sound(shown: Iterator[Shown]) -> Iterator[tuple[Display, Frame]]:
    """Frames that must be sound and of one geometry; raises ItemError: decode_error, size_change."""
    first: Display | None = None
    for frame in shown:
        if frame.picture is None:
            raise ItemError(Reason.DECODE_ERROR, f"frame {frame.number} is damaged or missing")
        first = first or frame.display
        if frame.display != first:
            raise ItemError(
                Reason.SIZE_CHANGE,
                f"from {first.coded_width}x{first.coded_height} to "
                f"{frame.display.coded_width}x{frame.display.coded_height} at frame {frame.number}",
            )
        yield frame.display, frame.picture


class PyAvReader:
    """`watched`: every check is made that is known, also those that decode a picture twice or are stricter than what
    decoders hold encoders to.
    """

    def __init__(self, path: Path, watched: bool = True) -> None:
        self.path, self.index, self.display, self._watched = path, frame_index(path), display(path), watched

    def frames(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Frame]:
        return (picture for _, picture in sound(self.shown(wanted, size, deinterlace=deinterlace)))

    def shown(self, wanted: Sequence[int], size: Size = None, *, deinterlace: bool = False) -> Iterator[Shown]:
        aspect = self.display.sample_aspect
        converters: dict[tuple[int, int, bytes | None], tuple[Display, Picture]] = {}
        combs = _Combs()
        last = self.display
        for number, frame in decoded(self.path, self.index, wanted, self._watched):
            if frame is None:
                yield Shown(number, None, last)
                continue
            geometry = (frame.width, frame.height, display_matrix(frame))
            if geometry not in converters:
                made = display_of(*geometry, aspect)
                converters[geometry] = made, Picture(made, size, deinterlace)
            last, converter = converters[geometry]
            yield Shown(
                number, converter.of(frame), last, bool(frame.interlaced_frame), combs.of(number, frame),
                frame_blockiness(frame) if number % BLOCK_STRIDE == 0 else float("nan"),
            )  # fmt: skip


class _Combs:
    """Looks for combs at every sixteenth frame, when the one before it was decoded too."""

    def __init__(self) -> None:
        self._before: tuple[int, NDArray[np.int16] | None] = (-2, None)

    def of(self, number: int, frame: VideoFrame) -> float:
        share = float("nan")
        if number % COMB_STRIDE == 0 and self._before[0] == number - 1 and self._before[1] is not None:
            now = luma(frame)
            share = combing(now, self._before[1]) if now is not None else 0.0
        if number % COMB_STRIDE == COMB_STRIDE - 1:
            self._before = (number, luma(frame))
        return share


def decoded(
    path: Path, index: FrameIndex, wanted: Sequence[int], watched: bool = True
) -> Iterator[tuple[int, VideoFrame | None]]:
    """Decoder frames of increasing frame numbers; None for those that are damaged. `watched`: as of `PyAvReader`."""
    if any(a >= b for a, b in itertools.pairwise(wanted)):
        raise ValueError("wanted frame numbers are not increasing")
    opened = open_video(path, closed=index.closed, edited=not index.reordered, strict=watched)
    with opened as (container, stream), decoding("decoding"):
        walk = (Walk if index.seekable else Count)(container, stream, index, watched)
        for number in wanted:
            yield number, walk.to(number)


def display(path: Path) -> Display:
    """Displayed geometry, from the first frame; raises ItemError when nothing decodes."""
    return _display(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _display(path: Path, _mtime_ns: int) -> Display:
    frame, aspect = first_frame(path)
    return frame_display(frame, aspect)


def first_frame(path: Path) -> tuple[Any, Fraction | None]:
    """The first frame that decodes, and the stream's sample aspect ratio."""
    with open_video(path) as (container, stream), decoding("decoding the first frame"):
        for frame in pictures(container, stream):
            return frame, stream.sample_aspect_ratio
    raise ItemError(Reason.DECODE_ERROR, "no packet decodes to a frame")
