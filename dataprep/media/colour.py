"""Colour of decoded frames: what the tags say, what is guessed where they are silent, and HDR to BT.709.

Wide-gamut and HDR pictures are taken to linear light, compressed to the reference white of SDR by the curve of
ITU-R BT.2390 (section 5.4.1), moved to BT.709 primaries (ITU-R BT.2087) and encoded with the BT.1886 gamma.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from dataprep.media.geometry import Frame

_MATRICES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
             7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}  # fmt: skip
_MATRIX_NAMES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020cl"}
_TRANSFERS = {16: "pq", 18: "hlg"}
_UNNAMED = (0, 2)
_HD_HEIGHT = 720  # untagged pictures from this height on are taken as BT.709

PEAK_NITS = 1000.0  # brightest light assumed of an HDR picture; HLG is defined for such a display
WHITE_NITS = 203.0  # reference white of HDR production (ITU-R BT.2408), white of the SDR picture
_GAMMA = 2.4
_LEVELS = 1 << 16
_ROOTS = np.arange(_LEVELS) / (_LEVELS - 1)  # tables go by the square root of light: dark steps stay apart
# Rows of linear RGB conversion matrices to BT.709 primaries.
_TO_709 = {
    9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),  # P3-D65
}
_WIDE_NAMES = {9: "bt2020", 12: "display_p3"}
_LUMA_2020 = (0.2627, 0.6780, 0.0593)


class Colour(NamedTuple):
    """How the pixels of a frame are to be read. `guessed`: the file does not name its matrix."""

    matrix: int  # numbers of ITU-T H.273, as in the files
    primaries: int
    transfer: int
    full_range: bool
    guessed: bool

    @property
    def converted(self) -> bool:
        """Whether pixels pass through linear light."""
        return self.transfer in _TRANSFERS or self.primaries in _TO_709

    @property
    def transforms(self) -> tuple[str, ...]:
        made = [f"tone_mapped:{_TRANSFERS[self.transfer]}"] if self.transfer in _TRANSFERS else []
        made += [f"gamut:{_WIDE_NAMES[self.primaries]}"] if self.primaries in _TO_709 else []
        return tuple(made)

    @property
    def colorspace(self) -> Colorspace:
        return _MATRICES[self.matrix]

    @property
    def range(self) -> ColorRange:
        return ColorRange.JPEG if self.full_range else ColorRange.MPEG

    def as_json(self) -> dict[str, object]:
        return {
            "matrix": _MATRIX_NAMES.get(self.matrix, str(self.matrix)),
            "primaries": self.primaries,
            "transfer": self.transfer,
            "range": "full" if self.full_range else "limited",
            "guessed": self.guessed,
        }


def colour_of(frame: VideoFrame) -> Colour:
    """Tags of a frame; an unnamed matrix is BT.2020 for HDR, else BT.709 from 720 lines on, BT.601 below."""
    name = frame.format.name
    rgb = name.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "pal8", "gray", "ya", "mono"))
    tagged, primaries, transfer = int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)
    known, hdr = tagged in _MATRICES, transfer in _TRANSFERS
    guess = 9 if hdr else 1 if frame.height >= _HD_HEIGHT else 5
    return Colour(
        matrix=tagged if known else guess,
        primaries=9 if hdr and primaries in _UNNAMED else primaries,  # both HDR systems are defined with BT.2020
        transfer=transfer,
        full_range=frame.color_range == ColorRange.JPEG or name.startswith("yuvj"),
        guessed=not known and not rgb,
    )


def _pq_to_nits(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(signal, 1 / m2)
    nits: NDArray[np.float64] = 10_000 * np.power(np.maximum(power - c1, 0) / (c2 - c3 * power), 1 / m1)
    return nits


def _nits_to_pq(nits: NDArray[np.float64] | float) -> NDArray[np.float64]:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.power(np.asarray(nits, dtype=np.float64) / 10_000, m1)
    return np.asarray(np.power((c1 + c2 * power) / (1 + c3 * power), m2))


def _hlg_to_scene(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def compress(nits: NDArray[np.float64], peak: float = PEAK_NITS, white: float = WHITE_NITS) -> NDArray[np.float64]:
    """The tone curve of BT.2390: unchanged up to its knee, `peak` to `white`, a Hermite spline between."""
    top = float(_nits_to_pq(peak))
    signal = np.minimum(_nits_to_pq(nits) / top, 1.0)
    limit = float(_nits_to_pq(white)) / top
    knee = 1.5 * limit - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * limit
    return _pq_to_nits(np.where(signal < knee, signal, spline) * top)


@lru_cache(maxsize=4)
def _linear_table(transfer: int) -> NDArray[np.float32]:
    """16-bit signal to light: nits for PQ, scene light 0..1 for HLG, 0..1 of white otherwise."""
    signal = np.arange(_LEVELS) / (_LEVELS - 1)
    light = {16: _pq_to_nits, 18: _hlg_to_scene}.get(transfer, lambda s: s**_GAMMA)(signal)
    return np.asarray(light, dtype=np.float32)


@lru_cache(maxsize=1)
def _hlg_gain_table() -> NDArray[np.float32]:
    """The HLG system gamma of 1.2 for a display of `PEAK_NITS`: nits over scene light, by scene luminance."""
    luminance = _ROOTS**2
    return np.asarray(PEAK_NITS * luminance**0.2, dtype=np.float32)


@lru_cache(maxsize=1)
def _gain_table() -> NDArray[np.float32]:
    """Compressed light over light, in units of SDR white, by light / peak."""
    nits = _ROOTS**2 * PEAK_NITS
    gain = np.ones(_LEVELS)
    gain[1:] = compress(nits[1:]) / nits[1:]
    return np.asarray(gain / WHITE_NITS, dtype=np.float32)


@lru_cache(maxsize=1)
def _encode_table() -> NDArray[np.uint8]:
    return np.asarray(np.rint(255 * _ROOTS ** (2 / _GAMMA)), dtype=np.uint8)


def to_sdr(pixels: NDArray[np.uint16], colour: Colour) -> Frame:
    """16-bit RGB (h, w, 3) of a wide or HDR picture as 8-bit BT.709. Tables and plain products: the same everywhere."""
    light = _linear_table(colour.transfer if colour.transfer in _TRANSFERS else 1)[pixels]
    if colour.transfer == 18:
        red, green, blue = (light[..., k] * np.float32(w) for k, w in enumerate(_LUMA_2020))
        place = _place(red + green + blue)
        light = light * _hlg_gain_table()[place][..., None]
    if colour.transfer in _TRANSFERS:
        place = _place(light.max(axis=2) / np.float32(PEAK_NITS))
        light = np.minimum(light, np.float32(PEAK_NITS)) * _gain_table()[place][..., None]
    rows = _TO_709.get(colour.primaries)
    if rows is not None:
        red, green, blue = light[..., 0], light[..., 1], light[..., 2]
        light = np.stack(
            [red * np.float32(r) + green * np.float32(g) + blue * np.float32(b) for r, g, b in rows], axis=2
        )
    return _encode_table()[_place(light)]


def _place(light: NDArray[np.float32]) -> NDArray[np.int32]:
    """Rows of the tables for light 0..1."""
    root = np.sqrt(np.clip(light, np.float32(0), np.float32(1)))
    return np.rint(root * np.float32(_LEVELS - 1)).astype(np.int32)
