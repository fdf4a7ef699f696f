"""What the decoding pass measures on every frame, all from one small picture.

Values are of 8-bit full-range pixels. A frame's `change`, `motion` are against the frame before it.
"""

from __future__ import annotations

import hashlib
import io

import cv2
import numpy as np
from numpy.typing import NDArray

from dataprep.media.geometry import Frame
from dataprep.signals.phash import perceptual_hash

COLUMNS: dict[str, type] = {
    "luma": np.float32,  # mean
    "dark": np.float32,  # share of pixels below 26
    "bright": np.float32,  # share of pixels from 250
    "sharpness": np.float32,  # variance of the Laplacian
    "bar_top": np.float32,  # black bars, as shares of the side; NaN in a dark frame
    "bar_bottom": np.float32,
    "bar_left": np.float32,
    "bar_right": np.float32,
    "change": np.float32,  # mean absolute difference of luma
    "motion": np.float32,  # mean length of the flow, pixels a frame; NaN where not measured
    "interlaced": np.float32,  # 0 or 1
    "phash": np.uint64,  # 0 for a picture without structure
    "content": np.uint64,  # digest of the small picture
}
BLACK_SHARE = 0.98  # of dark pixels, from which a frame is black (as in FFmpeg's blackdetect)
_DARK, _BRIGHT = 26, 250
_BAR_MEAN, _BAR_PEAK, _EDGE_LUMA, _EDGE_SHARE = 20, 48, 40, 0.5


class FrameSignals:
    """Accumulates the columns over consecutive frames; the first one may be context only."""

    def __init__(self, motion_stride: int) -> None:
        self._stride = motion_stride
        self._rows: list[tuple[float | int, ...]] = []
        self._before: NDArray[np.uint8] | None = None
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def skip(self, frame: Frame) -> None:
        """Take a frame as the one before the next, without measuring it."""
        self._before = _grey(frame)

    def add(self, number: int, frame: Frame, interlaced: bool) -> None:
        """`number` is the frame's place in the video: motion is measured at multiples of the stride."""
        grey = _grey(frame)
        before, self._before = self._before, grey
        if before is not None and before.shape != grey.shape:
            before = None  # the size has changed: nothing to compare with
        change = float(np.mean(cv2.absdiff(grey, before))) if before is not None else 0.0
        motion = self._motion(before, grey) if before is not None and number % self._stride == 0 else np.nan
        self._rows.append(
            (
                float(grey.mean()),
                float(np.mean(grey < _DARK)),
                float(np.mean(grey >= _BRIGHT)),
                float(cv2.Laplacian(grey, cv2.CV_32F).var()),
                *bars(grey),
                change,
                motion,
                float(interlaced),
                perceptual_hash(grey),
                int.from_bytes(hashlib.blake2b(frame.tobytes(), digest_size=8).digest(), "little"),
            )
        )

    def blank(self) -> None:
        """A row for a frame that is not there; the next one has nothing before it."""
        self._before = None
        self._rows.append((0,) * len(COLUMNS))

    def _motion(self, before: NDArray[np.uint8], grey: NDArray[np.uint8]) -> float:
        if min(grey.shape) < 32:  # the flow's patches need room
            return float(np.mean(cv2.absdiff(grey, before)))
        flow = self._flow.calc(before, grey, None)
        return float(np.mean(np.linalg.norm(flow, axis=2)))

    def columns(self) -> dict[str, NDArray[np.generic]]:
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(COLUMNS)
        return {n: np.array(v, dtype=t) for (n, t), v in zip(COLUMNS.items(), columns, strict=True)}


def _grey(frame: Frame) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey


def bars(grey: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Black bars (top, bottom, left, right) as shares of the side; NaN when the whole frame is dark.

    A bar must end at an edge: a line of picture, lit over at least half of its length. A night sky does not.
    """
    if np.mean(grey < _DARK) >= BLACK_SHARE:
        return (np.nan,) * 4
    sides = (grey, grey[::-1], grey.T, grey.T[::-1])
    top, bottom, left, right = (_bar(side) for side in sides)
    return top, bottom, left, right


def _bar(lines: NDArray[np.uint8]) -> float:
    picture = (lines.mean(axis=1) >= _BAR_MEAN) | (lines.max(axis=1) >= _BAR_PEAK)
    depth = int(np.argmax(picture))
    if depth == 0 or depth + 1 >= len(lines):
        return 0.0
    # One line may be a blend of bar and picture, so the edge may be the next one.
    lit = max(float(np.mean(lines[k] >= _EDGE_LUMA)) for k in (depth, depth + 1))
    return depth / len(lines) if lit >= _EDGE_SHARE else 0.0


def pack(columns: dict[str, NDArray[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(payload: bytes) -> dict[str, NDArray[np.generic]]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
