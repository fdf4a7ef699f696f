"""BRISQUE technical quality (Mittal, Moorthy and Bovik, 2012): lower is better, about 0 to 100.

Natural-scene statistics of locally normalised luminance at two scales, judged by the packaged support
vector regression. Read here without libsvm or pickle.
"""

from __future__ import annotations

import json
from functools import cache
from math import lgamma
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dataprep.media.geometry import Frame
from m4v.core.asset_catalog import asset_path
from m4v.core.errors import DataIntegrityError

Array = NDArray[np.float64]

_KERNEL, _SIGMA = (7, 7), 7 / 6
_STABLE = 1 / 255  # keeps flat areas from dividing by zero
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # the four neighbours of eq. 8 to 11
_MIN_SIDE = 32


class Regression(NamedTuple):
    """Epsilon-SVR with a radial kernel over 36 features scaled to [-1, 1]."""

    vectors: Array  # (support vectors, 36)
    weights: Array  # (support vectors,)
    gamma: float
    rho: float
    low: Array  # (36,)
    high: Array


@cache
def regression() -> Regression:
    """The packaged model; raises DataIntegrityError when its text does not parse."""
    header, _, body = asset_path("brisque").read_text().partition("SV\n")
    facts = dict(line.split(" ", 1) for line in header.splitlines())
    ranges = json.loads(asset_path("brisque/ranges").read_text())
    try:
        rows = [line.split() for line in body.splitlines() if line.strip()]
        vectors = np.array([[float(cell.split(":")[1]) for cell in row[1:]] for row in rows])
        weights = np.array([float(row[0]) for row in rows])
        low, high = np.array(ranges["min_"], float), np.array(ranges["max_"], float)
        model = Regression(vectors, weights, float(facts["gamma"]), float(facts["rho"]), low, high)
    except (ValueError, KeyError, IndexError) as error:
        raise DataIntegrityError(f"BRISQUE model does not parse: {error}", where="asset brisque") from None
    if model.vectors.shape != (int(facts["total_sv"]), 36):
        raise DataIntegrityError("BRISQUE model has another shape", value=model.vectors.shape, where="asset brisque")
    return model


def brisque(frame: Frame) -> float | None:
    """Quality of a picture; None when it is too small for the statistics."""
    if min(frame.shape[:2]) < _MIN_SIDE:
        return None
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64) / 255
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return predict(np.array([*features(grey), *features(half)]))


def predict(values: Array) -> float:
    """Score of 36 features."""
    model = regression()
    scaled = -1 + 2 * (values - model.low) / (model.high - model.low)
    kernel = np.exp(-model.gamma * np.square(model.vectors - scaled).sum(axis=1))
    return float(model.weights @ kernel - model.rho)


def features(grey: Array) -> list[float]:
    """The 18 features of one scale: shape and variance of the normalised picture, then four of each product."""
    normal = _normalised(grey)
    shape, _, left, right = _asymmetric_fit(normal)
    found = [shape, (left + right) / 2]
    for down, across in _SHIFTS:
        found += _asymmetric_fit(_neighbour_product(normal, down, across))
    return found


def _normalised(grey: Array) -> Array:
    mean = cv2.GaussianBlur(grey, _KERNEL, _SIGMA, borderType=cv2.BORDER_CONSTANT)
    square = cv2.GaussianBlur(grey * grey, _KERNEL, _SIGMA, borderType=cv2.BORDER_CONSTANT)
    return np.asarray((grey - mean) / (np.sqrt(np.abs(square - mean * mean)) + _STABLE))


def _neighbour_product(normal: Array, down: int, across: int) -> Array:
    height, width = normal.shape
    if across >= 0:
        return normal[: height - down, : width - across] * normal[down:, across:]
    return normal[: height - down, 1:] * normal[down:, :-1]


def _asymmetric_fit(values: Array) -> list[float]:
    """Asymmetric generalised Gaussian by moments: shape, mean, left and right variance (eq. 12 to 17)."""
    negative, positive = values[values < 0], values[values >= 0]
    left = float(np.mean(negative**2)) if negative.size else 1e-12
    right = float(np.mean(positive**2)) if positive.size else 1e-12
    ratio = float(np.mean(np.abs(values))) ** 2 / max(float(np.mean(values**2)), 1e-12)
    gamma = np.sqrt(left) / np.sqrt(max(right, 1e-12))
    wanted = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    shape = _shape_of(wanted)
    spread = np.exp((lgamma(1 / shape) - lgamma(3 / shape)) / 2)
    mean = (np.sqrt(right) - np.sqrt(left)) * spread * np.exp(lgamma(2 / shape) - lgamma(1 / shape))
    return [shape, float(mean), left, right]


def _shape_of(ratio: float) -> float:
    """Shape whose moment ratio is `ratio`, by bisection; the ratio grows with the shape."""
    low, high = 0.1, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.exp(2 * lgamma(2 / middle) - lgamma(1 / middle) - lgamma(3 / middle)) < ratio:
            low = middle
        else:
            high = middle
    return (low + high) / 2
