"""Intervals of figures over dimensions (`vbench.total`, `vbench-long.total`): prompts are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from eval.records import ScoreSet
from eval.suites import Aggregate, DimensionResult
from eval.vbench import i2v, i2v_prompts, v2, v2_prompts
from eval.vbench.aggregate import fast_figures, standard_figures
from m4v.core.rng import generator

MIN_PROMPTS = 5
_SEED = 0
Interval = tuple[float, float]
_Figures = Callable[[Sequence[DimensionResult]], Aggregate]
_FIGURES: Mapping[str, _Figures] = {
    **dict.fromkeys(("total", "quality", "semantic"), standard_figures),
    **dict.fromkeys(("avg4", "avg7"), fast_figures),
}  # fmt: skip
_OF_SUITE: Mapping[str, _Figures] = {v2_prompts.SET: v2.figures, i2v_prompts.SET: i2v.figures}
Means = Mapping[str, Mapping[int, float]]  # dimension -> prompt -> mean over its seeds


def figure_intervals(scores: ScoreSet, *, resamples: int, confidence: float) -> dict[str, Interval]:
    """Bootstrap interval of every figure that the scores have, as fractions.

    One draw takes prompts of the whole suite with replacement, each with its seeds averaged: dimensions that share
    prompts move together. Figures are affine in the dimensions' means, so a draw costs a product. A figure that needs
    a dimension of fewer than `MIN_PROMPTS` prompts has none.
    """
    if scores.figures is None:
        return {}
    means = _means(scores)
    dimensions = [name for name, prompts in means.items() if len(prompts) >= MIN_PROMPTS]
    drawn = _drawn(means, dimensions, resamples)
    found: dict[str, Interval] = {}
    for name, value in scores.figures.figures.items():
        suite, _, plain = name.partition(".")
        if value is None:
            continue
        start, slopes = affine(plain, tuple(means), suite)
        if any(slope and d not in dimensions for d, slope in slopes.items()):
            continue
        values = start + sum(slope * drawn[d] for d, slope in slopes.items() if slope)
        tail = (1.0 - confidence) / 2
        low, high = np.nanquantile(values, [tail, 1.0 - tail])
        found[name] = (float(low), float(high))
    return found


def affine(figure: str, dimensions: Sequence[str], suite: str = "vbench") -> tuple[float, dict[str, float]]:
    """Constant and slopes of a suite's figure in the raw scores of `dimensions`, which must be all that it needs."""
    rule = _OF_SUITE.get(suite) or _FIGURES[figure]

    def at(values: Mapping[str, float]) -> float:
        results = [DimensionResult(dimension=n, status="measured", expected=1, score=v) for n, v in values.items()]
        found = rule(results).figures[figure]
        assert found is not None
        return found

    zero = dict.fromkeys(dimensions, 0.0)
    start = at(zero)
    return start, {name: at({**zero, name: 1.0}) - start for name in dimensions}


def _means(scores: ScoreSet) -> Means:
    found: dict[str, dict[int, list[float]]] = {}
    for video in scores.per_video:
        for name, value in video.metrics.items():
            if value is not None:
                found.setdefault(name.partition(".")[2], {}).setdefault(video.prompt_index, []).append(value)
    return {name: {p: float(np.mean(v)) for p, v in prompts.items()} for name, prompts in found.items()}


def _drawn(means: Means, dimensions: Sequence[str], resamples: int) -> dict[str, npt.NDArray[np.float64]]:
    """Mean of each dimension in every draw."""
    prompts = sorted({p for name in dimensions for p in means[name]})
    place = {p: n for n, p in enumerate(prompts)}
    picks = generator(_SEED, "figures").integers(0, max(1, len(prompts)), size=(resamples, len(prompts)))
    counts = np.stack([np.bincount(row, minlength=len(prompts)) for row in picks]) if prompts else picks
    found = {}
    for name in dimensions:
        here = [place[p] for p in means[name]]
        values = np.array(list(means[name].values()))
        weight = counts[:, here]
        total = weight.sum(axis=1)
        # A draw without any prompt of the dimension says nothing of it.
        found[name] = np.where(total > 0, (weight @ values) / np.maximum(total, 1), np.nan)
    return found
