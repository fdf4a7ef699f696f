"""Decoder frames to displayed RGB arrays, with every conversion stated and none guessed by a library."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from dataprep.media.colour import colour_of, to_sdr
from dataprep.media.geometry import Display, Frame, Size, display_of, orient, resize
from dataprep.media.interlace import first_field

# Exact integer arithmetic, so that no SIMD path of a processor can change a value.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_FULL = _EXACT | Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT
_SHRUNK = _EXACT | Interpolation.AREA
PAPER = 255  # transparent pictures lie on white
_ALPHA_FORMATS = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16", "pal8")


def has_alpha(format_name: str) -> bool:
    return format_name.startswith(_ALPHA_FORMATS)


def display_matrix(frame: VideoFrame) -> bytes | None:
    """The display matrix that a frame carries."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return bytes(matrix) if matrix else None


def frame_display(frame: VideoFrame, sample_aspect: Any) -> Display:
    """Displayed geometry of a decoder frame."""
    return display_of(frame.width, frame.height, display_matrix(frame), sample_aspect)


class Picture:
    """Converts frames of one geometry; `deinterlace` takes their upper field alone."""

    def __init__(self, display: Display, size: Size, deinterlace: bool = False) -> None:
        self._display, self._deinterlace = display, deinterlace
        self._size = display.sized(size)
        # Shrinking in the converter, before colours are expanded, costs a tenth of shrinking afterwards.
        shrinks = (
            self._size != (display.width, display.height)
            and self._size[0] <= display.width
            and self._size[1] <= display.height
        )
        self._shrinks = shrinks
        self._target = display.coded(*self._size) if shrinks else (display.coded_width, display.coded_height)
        self._reformatter = VideoReformatter()

    def of(self, frame: VideoFrame) -> Frame:
        """uint8 (h, w, 3): tone-mapped, composited, upright, square."""
        colour = colour_of(frame)
        alpha = has_alpha(frame.format.name)
        name = "rgba" if alpha else "rgb48le" if colour.converted else "rgb24"
        converted = self._reformatter.reformat(
            first_field(frame) if self._deinterlace else frame,
            width=self._target[0],
            height=self._target[1],
            format=name,
            src_colorspace=colour.colorspace,
            src_color_range=colour.range,
            dst_color_range=ColorRange.JPEG,
            interpolation=_SHRUNK if self._shrinks else _FULL,
            threads=1,
        )
        pixels: Any = converted.to_ndarray()
        if alpha:
            pixels = composite(pixels)
        elif colour.converted:
            pixels = to_sdr(pixels, colour)
        return resize(orient(pixels, self._display), *self._size)


def composite(pixels: Frame) -> Frame:
    """RGBA (h, w, 4), straight alpha, laid on white; rounded to the nearest step."""
    alpha = pixels[..., 3:].astype(np.uint32)
    mixed = pixels[..., :3] * alpha + PAPER * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
