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
from typing import Any, Protocol

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from dataprep.media.container import decoding, open_video
from dataprep.media.geometry import Display, Frame, display_of, resize, rotate
from dataprep.media.index import FrameIndex, frame_index
from dataprep.quarantine import ItemError, Reason

# Exact integer arithmetic, so that no SIMD path of a processor can change a value.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_FULL = _EXACT | Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT
_SHRUNK = _EXACT | Interpolation.AREA
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
_COLORSPACES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
                7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}  # fmt: skip
_HD_HEIGHT = 720  # untagged pictures from this height on are taken as BT.709
_SEEK_ATTEMPTS = 3


Size = int | tuple[int, int] | None  # a long side to shrink to, or (width, height), or as displayed


class FrameReader(Protocol):
    """Displayed RGB frames by number: rotated, pixels square."""

    index: FrameIndex
    display: Display
    interlaced: bool  # whether the frame last yielded says that it is

    def frames(self, wanted: Sequence[int], size: Size = None) -> Iterator[Frame]:
        """The wanted frames, numbers increasing, scaled to `size`; each uint8 (h, w, 3).

        Raises ItemError: decode_error, size_change.
        """


class PyAvReader:
    def __init__(self, path: Path) -> None:
        self.path, self.index, self.display = path, frame_index(path), display(path)
        self.interlaced = False

    def frames(self, wanted: Sequence[int], size: Size = None) -> Iterator[Frame]:
        picture = Picture(self.display, size)
        for frame in decoded(self.path, self.index, wanted):
            self.interlaced = bool(frame.interlaced_frame)
            yield picture.of(frame)


def decoded(path: Path, index: FrameIndex, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """Decoder frames of increasing frame numbers; raises ItemError `decode_error` for a frame that does not come."""
    if any(a >= b for a, b in itertools.pairwise(wanted)):
        raise ValueError("wanted frame numbers are not increasing")
    with open_video(path) as (container, stream), decoding("decoding"):
        walk = _Walk(container, stream, index) if index.seekable else _Count(container, stream)
        for number in wanted:
            frame = walk.to(number)
            if frame.is_corrupt:
                raise ItemError(Reason.DECODE_ERROR, f"frame {number} is damaged")
            yield frame


class _Count:
    """Frames by counting from the start, for files without usable times."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._frames = enumerate(container.decode(stream))

    def to(self, number: int) -> VideoFrame:
        for position, frame in self._frames:
            if position == number:
                return frame
        raise ItemError(Reason.DECODE_ERROR, f"decoding ends before frame {number}")


class _Walk:
    """Frames by presentation time, jumping to a key frame where that saves decoding."""

    def __init__(self, container: InputContainer, stream: VideoStream, index: FrameIndex) -> None:
        self._container, self._stream, self._index = container, stream, index
        self._frames = container.decode(stream)
        self._position: int | None = None  # pts of the last decoded frame
        self._held: VideoFrame | None = None  # decoded while landing, not yet passed

    def to(self, number: int) -> VideoFrame:
        target = int(self._index.pts[number])
        key = int(np.searchsorted(self._index.keys, target, side="right")) - 1
        reached = int(self._index.pts[0]) if self._position is None else self._position
        if key >= 0 and int(self._index.keys[key]) > reached:
            self._land(key)
        frame = self._advance(target)
        if frame is None:
            raise ItemError(Reason.DECODE_ERROR, f"frame {number} does not decode")
        return frame

    def _advance(self, target: int) -> VideoFrame | None:
        while True:
            frame, self._held = self._held or next(self._frames, None), None
            if frame is None or frame.pts is None:
                return None
            self._position = frame.pts
            if frame.pts == target:
                return frame
            if frame.pts > target:
                self._held = frame
                return None

    def _land(self, key: int) -> None:
        """Continue decoding from key frame number `key` (or an earlier one where the seek is not exact)."""
        for earlier in range(key, max(-1, key - _SEEK_ATTEMPTS), -1):
            wanted = int(self._index.keys[earlier])
            self._container.seek(wanted, stream=self._stream, backward=True, any_frame=False)
            self._frames = self._container.decode(self._stream)
            # Pictures shown before the key frame may lack their references: they are passed over.
            for frame in self._frames:
                if frame.pts is not None and frame.pts >= wanted:
                    if frame.pts == wanted:
                        self._held, self._position = frame, wanted
                        return
                    break
        self._container.seek(int(self._index.keys[0]), stream=self._stream, backward=True, any_frame=False)
        self._frames, self._held = self._container.decode(self._stream), None


class Picture:
    """Decoder frames to displayed RGB arrays, with the colour conversion stated and not guessed by a library."""

    def __init__(self, display: Display, size: Size) -> None:
        self._display = display
        self._size = display.sized(size)
        # Shrinking in the converter, before colours are expanded, costs a tenth of shrinking afterwards.
        self._shrinks = (
            self._size != (display.width, display.height)
            and self._size[0] <= display.width
            and self._size[1] <= display.height
        )
        self._reformatter = VideoReformatter()

    def of(self, frame: VideoFrame) -> Frame:
        if (frame.width, frame.height) != (self._display.coded_width, self._display.coded_height):
            raise ItemError(
                Reason.SIZE_CHANGE,
                f"from {self._display.coded_width}x{self._display.coded_height} to {frame.width}x{frame.height}",
            )
        width, height = self._display.coded(*self._size) if self._shrinks else (frame.width, frame.height)
        full_range = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=_colorspace(frame),
            src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=_SHRUNK if self._shrinks else _FULL,
            threads=1,
        )
        pixels: Frame = converted.to_ndarray()  # type: ignore[assignment]
        return resize(rotate(pixels, self._display.rotation), *self._size)


def _colorspace(frame: VideoFrame) -> Colorspace:
    guess = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    return _COLORSPACES.get(int(frame.colorspace), guess)


def display(path: Path) -> Display:
    """Displayed geometry, from the first frame; raises ItemError `unsupported` for HDR and odd rotations."""
    return _display(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _display(path: Path, _mtime_ns: int) -> Display:
    frame, aspect = first_frame(path)
    if frame.color_trc in _HDR_TRANSFERS:
        name = _HDR_TRANSFERS[int(frame.color_trc)]
        raise ItemError(Reason.UNSUPPORTED, f"{name} transfer: tone-map it to BT.709 first")
    return display_of(frame.width, frame.height, float(frame.rotation), aspect)


def first_frame(path: Path) -> tuple[Any, Fraction | None]:
    """The first decoder frame and the stream's sample aspect ratio."""
    with open_video(path) as (container, stream), decoding("decoding the first frame"):
        for frame in container.decode(stream):
            return frame, stream.sample_aspect_ratio
    raise ItemError(Reason.DECODE_ERROR, "no packet decodes to a frame")
