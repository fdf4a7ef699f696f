"""Dense optical flow of a clip in a few numbers (DIS, Kroeger et al. 2016; no weights).

Lengths are shares of the picture's short side, so that sizes compare. Flow is taken between frames about an
eighth of a second apart, as VBench's dynamic degree does. Flat pixels have no flow one could measure and
count as still.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from eval.metrics.clip import FloatArray, Frames

SHORT_SIDE_PX = 96
PAIR_S = 1 / 8
BLUR_SIGMA = 1.5
_EVERY = 7  # pixels from which the colour axis is taken
MIN_GRADIENT = 2.0  # levels per pixel after the blur: above sensor and compression noise


@dataclass(frozen=True, eq=False)
class FlowSummary:
    """Motion of one clip in short sides: mean speed over all pixels (per second), net displacement (x right,
    y down) and path length of what moves, and how far the flow points outward (-1 shrinks .. 1 grows)."""

    speed: float
    net: tuple[float, float]
    steps: FloatArray  # (pairs, 2), whose sum is `net`
    path: float
    outward: float


@dataclass(frozen=True)
class _Pair:
    mean: float
    vector: FloatArray
    outward: float
    moving: float


@contextmanager
def one_thread() -> Iterator[None]:
    """DIS splits a picture by the number of threads, and its result depends on the split."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def summarise_flow(frames: Frames, fps: float) -> FlowSummary | None:
    """None for a single frame."""
    if len(frames) < 2:
        return None
    step = min(max(1, round(fps * PAIR_S)), len(frames) - 1)
    with one_thread():
        pictures = _intensities(frames[::step])
        engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        pairs = [_of_pair(engine.calc(a, b, None), a) for a, b in itertools.pairwise(pictures)]
    amount = sum(p.mean for p in pairs)
    steps = np.stack([p.vector for p in pairs])
    net = steps.sum(axis=0)
    return FlowSummary(
        speed=amount / len(pairs) * fps / step,
        net=(float(net[0]), float(net[1])),
        steps=steps,
        path=sum(p.moving for p in pairs),
        outward=sum(p.outward * p.mean for p in pairs) / amount if amount > 1e-12 else 0.0,
    )


def _of_pair(flow: np.ndarray, picture: np.ndarray) -> _Pair:
    """What moves is weighted by its own magnitude, so a small object on a still background counts as itself."""
    field = flow.astype(np.float64) / min(picture.shape)
    field[_gradient(picture) < MIN_GRADIENT] = 0.0
    magnitude = np.linalg.norm(field, axis=-1)
    total = float(magnitude.sum())
    if total < 1e-9:
        return _Pair(0.0, np.zeros(2), 0.0, 0.0)
    weight = magnitude / total
    ys, xs = np.mgrid[0 : field.shape[0], 0 : field.shape[1]]
    dx, dy = xs - float((weight * xs).sum()), ys - float((weight * ys).sum())
    radial = float((field[..., 0] * dx + field[..., 1] * dy).sum())
    outward = radial / max(float((magnitude * np.hypot(dx, dy)).sum()), 1e-12)
    vector = np.tensordot(weight, field, axes=((0, 1), (0, 1)))
    return _Pair(float(magnitude.mean()), vector, outward, float((weight * magnitude).sum()))


def _gradient(picture: np.ndarray) -> FloatArray:
    vertical, horizontal = np.gradient(picture.astype(np.float64))
    return np.asarray(np.hypot(vertical, horizontal))


def _intensities(frames: Frames) -> list[np.ndarray]:
    """The clip in one channel, uint8, blurred, at `SHORT_SIDE_PX`: its colours along their direction of
    largest variance. That is close to luma in natural pictures, and still tells red from green of one luma."""
    small = [_resized(frame) for frame in frames]
    pixels = np.concatenate([s.reshape(-1, 3)[::_EVERY] for s in small]).astype(np.float64)
    mean = pixels.mean(axis=0)
    axis = np.linalg.eigh(np.cov((pixels - mean).T))[1][:, -1]
    axis = axis if axis.sum() >= 0 else -axis
    along = [(s.astype(np.float64) - mean) @ axis for s in small]
    low, high = min(float(a.min()) for a in along), max(float(a.max()) for a in along)
    scale = min(1.0, 255.0 / max(high - low, 1e-9))
    return [
        np.asarray(cv2.GaussianBlur(np.rint((a - low) * scale).astype(np.uint8), (0, 0), BLUR_SIGMA)) for a in along
    ]


def _resized(frame: np.ndarray) -> np.ndarray:
    """At `SHORT_SIDE_PX`; small pictures are enlarged, since DIS needs some room."""
    scale = SHORT_SIDE_PX / min(frame.shape[:2])
    if scale == 1:
        return frame
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), size, interpolation=how))
