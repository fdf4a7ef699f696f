"""Geometry of score histograms: stacked bars of kept and dropped clips with the rules' thresholds; no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.inspection.clip_table import RuleFacts, ScoreFacts
from pipelines.web.charts import Tick, compact

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 150, 8, 22, 16


@dataclass(frozen=True)
class Bar:
    """One bin: kept clips below, dropped ones above. `label` tells its range and counts."""

    x: float
    width: float
    kept_y: float
    kept_height: float
    dropped_y: float
    dropped_height: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A threshold: a line at `x` and the part of the axis that it drops, `shade_x` on over `shade_width`."""

    x: float
    shade_x: float
    shade_width: float
    label: str
    anchor: str  # start | end: on which side of the line its label has room


@dataclass(frozen=True)
class Histogram:
    score: ScoreFacts
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    outside: tuple[str, ...]  # thresholds beyond all values
    base: float = HEIGHT - BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def histogram(score: ScoreFacts) -> Histogram:
    """Bars of equal width whatever the bins; heights by the square root, so that rare values stay visible."""
    tallest = max((k + d for k, d in zip(score.kept, score.dropped, strict=True)), default=0) or 1
    room = HEIGHT - BOTTOM - TOP
    step = (WIDTH - 2 * LEFT) / max(len(score.kept), 1)
    bars = tuple(
        _bar(LEFT + n * step, step, score.kept[n], score.dropped[n], room / tallest**0.5, score.edges[n : n + 2])
        for n in range(len(score.kept))
    )
    marks, outside = [], []
    for rule in score.rules:
        if rule.threshold is None:
            continue
        label = f"{rule.rule}: {'below' if rule.bound == 'min' else 'above'} {compact(rule.threshold)}"
        if score.edges[0] <= rule.threshold <= score.edges[-1]:
            marks.append(_mark(rule, _place(rule.threshold, score.edges), label))
        else:
            outside.append(label)
    return Histogram(score, bars, tuple(marks), _ticks(score.edges), tuple(outside))


def _bar(x: float, step: float, kept: int, dropped: int, scale: float, edges: Sequence[float]) -> Bar:
    total, below = (kept + dropped) ** 0.5 * scale, HEIGHT - BOTTOM
    if kept + dropped:
        total = max(total, 1.5)
    low = total * kept / (kept + dropped) if kept + dropped else 0.0
    label = f"{compact(edges[0])} to {compact(edges[1])}: {kept:,} kept, {dropped:,} dropped"
    return Bar(
        round(x + 0.5, 2), round(step - 1, 2), round(below - low, 2), round(low, 2), round(below - total, 2),
        round(total - low, 2), label,
    )  # fmt: skip


def _place(value: float, edges: Sequence[float]) -> float:
    across = float(np.interp(value, edges, np.linspace(0, 1, len(edges))))
    return round(LEFT + across * (WIDTH - 2 * LEFT), 2)


def _mark(rule: RuleFacts, x: float, label: str) -> Mark:
    shade = (LEFT, x - LEFT) if rule.bound == "min" else (x, WIDTH - LEFT - x)
    return Mark(x, shade[0], round(max(0.0, shade[1]), 2), label, "end" if x > WIDTH / 2 else "start")


def _ticks(edges: Sequence[float]) -> tuple[Tick, ...]:
    """The ends, and the middle of the axis."""
    places = sorted({0, len(edges) // 2, len(edges) - 1})
    return tuple(Tick(_place(edges[p], edges), compact(edges[p])) for p in places)
