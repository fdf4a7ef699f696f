"""Geometry of the page's charts: numbers in, SVG paths and ticks out. Drawing is the templates' work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """`path` is an SVG path; `css` names its look."""

    name: str
    css: str
    path: str


@dataclass(frozen=True)
class LineChart:
    width: int
    height: int
    left: int
    bottom: int
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    label: str
    points: str  # "x,y,step,value" for the pointer, `;` between


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def compact(value: float) -> str:
    """A tick label: few significant digits, thousands from ten thousand on."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.4g}"


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean, over fewer values at the ends."""
    array = np.asarray(values, np.float64)
    half = max(0, window // 2)
    sums = np.concatenate([[0.0], np.cumsum(array)])
    low = np.maximum(np.arange(len(array)) - half, 0)
    high = np.minimum(np.arange(len(array)) + half + 1, len(array))
    return [float(v) for v in (sums[high] - sums[low]) / (high - low)]


def polyline(points: Sequence[Point]) -> str:
    """An SVG path through the points, tenths of a unit."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def line_chart(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    label: str,
    width: int = 360,
    height: int = 200,
    max_points: int = 400,
) -> LineChart | None:
    """Raw values faintly and their moving mean over a twentieth of them; None without finite values."""
    pairs = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if not pairs:
        return None
    xs, ys = [p[0] for p in pairs], [p[1] for p in pairs]
    mean = smooth(ys, max(1, len(ys) // 20))
    left, bottom, top, right = 46, 26, 10, 10
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(ys), max(ys)
    pad = (y1 - y0) * 0.05 or abs(y1) * 0.1 or 1.0
    y0, y1 = y0 - pad, y1 + pad

    def place(x: float, y: float) -> Point:
        across = (x - x0) / (x1 - x0) if x1 > x0 else 0.5
        up = (y - y0) / (y1 - y0)
        return left + across * (width - left - right), height - bottom - up * (height - bottom - top)

    keep = sorted({round(i) for i in np.linspace(0, len(xs) - 1, min(len(xs), max_points))})
    raw = [place(xs[i], ys[i]) for i in keep]
    smoothed = [place(xs[i], mean[i]) for i in keep]
    return LineChart(
        width=width, height=height, left=left, bottom=bottom, label=label,
        series=(Series("each step", "raw", polyline(raw)), Series("moving mean", "mean", polyline(smoothed))),
        x_ticks=tuple(Tick(place(v, y0)[0], compact(v)) for v in nice_ticks(x0, x1, 4) if float(v).is_integer()),
        y_ticks=tuple(Tick(place(x0, v)[1], compact(v)) for v in nice_ticks(y0, y1, 4)),
        points=";".join(f"{p[0]:.1f},{p[1]:.1f},{xs[i]:g},{ys[i]:.5g}" for i, p in zip(keep, smoothed, strict=True)),
    )  # fmt: skip


@dataclass(frozen=True)
class Strip:
    """Values of two groups as dots on one axis, their means as bars; x in 0..width."""

    width: int
    height: int
    first: tuple[float, ...]
    second: tuple[float, ...]
    first_mean: float | None
    second_mean: float | None
    chance: float | None
    low: str
    high: str


def strip(
    first: Sequence[float], second: Sequence[float], chance: float | None, width: int = 220, height: int = 44
) -> Strip | None:
    """None without values. The axis is 0..1 when everything lies in it and spans a fair part of it."""
    values = [*first, *second] + ([chance] if chance is not None else [])
    if not first and not second:
        return None
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and high - low > 0.2:
        low, high = 0.0, 1.0
    elif high == low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    margin = 6

    def place(value: float) -> float:
        return round(margin + (value - low) / (high - low) * (width - 2 * margin), 1)

    return Strip(
        width=width, height=height, first=tuple(map(place, first)), second=tuple(map(place, second)),
        first_mean=place(float(np.mean(first))) if first else None,
        second_mean=place(float(np.mean(second))) if second else None,
        chance=place(chance) if chance is not None else None, low=compact(low), high=compact(high),
    )  # fmt: skip
