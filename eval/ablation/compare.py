"""Scores of the variants to the cells of a table: means with intervals, and differences to the baseline by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.ablation.records import Cell, Column
from eval.pairing import BOOTSTRAP_SEED, MIN_PROMPTS, by_prompt, paired_comparison
from eval.records import MetricScore, ScoreSet
from eval.vbench.intervals import figure_intervals
from m4v.core.rng import generator

DECIMALS = 6


def columns_of(scores: Sequence[ScoreSet]) -> tuple[Column, ...]:
    """Figures over a suite first, then every metric that any of `scores` has, in their order."""
    found: dict[str, Column] = {}
    for each in scores:
        for name in each.figures.figures if each.figures is not None else ():
            title = name.partition(".")[2].replace("_", " ").capitalize()
            found.setdefault(name, Column(name=name, title=title, unit="", description=f"{name}, a fraction",
                                          higher_is_better=True, chance=None))  # fmt: skip
    for each in scores:
        for name, metric in each.metrics.items():
            found.setdefault(name, _column(name, metric))
    return tuple(found.values())


def _column(name: str, metric: MetricScore) -> Column:
    return Column(
        name=name, title=metric.title, unit=metric.unit, description=metric.description,
        higher_is_better=metric.higher_is_better, chance=metric.chance,
    )  # fmt: skip


def cells_of(
    scores: ScoreSet, baseline: ScoreSet | None, *, resamples: int, confidence: float
) -> tuple[dict[str, Cell], str | None]:
    """Cells by metric and figure, and why they are not held against `baseline` (None: they are, or it is none).

    Figures have no difference: a mean over dimensions is judged by its dimensions.
    """
    found: dict[str, Cell] = {}
    if scores.figures is not None:
        bounds = figure_intervals(scores, resamples=resamples, confidence=confidence)
        prompts = len({video.prompt_index for video in scores.per_video})
        for name, value in scores.figures.figures.items():
            found[name] = Cell(value=value, interval=_rounded(bounds.get(name)), prompts=prompts)
    apart = scores.identity.apart(baseline.identity) if baseline is not None else ""
    for name, metric in scores.metrics.items():
        cell = _mean(scores, name, metric, resamples, confidence)
        if baseline is not None and not apart and name in baseline.metrics:
            cell = _against(cell, scores, baseline, name, resamples, confidence)
        found[name] = cell
    return found, apart or None


def stand_ins(scores: ScoreSet) -> tuple[str, ...]:
    """Metrics that were measured with stand-in weights; figures among them where no metric of the record is sound."""
    named = scores.identity.stand_in
    if scores.figures is None or not named or not set(named) >= set(scores.metrics):
        return named
    return (*named, *scores.figures.figures)


def _mean(scores: ScoreSet, name: str, metric: MetricScore, resamples: int, confidence: float) -> Cell:
    """The metric's mean with a bootstrap interval over prompts; the draws depend on the metric's name alone."""
    values = by_prompt(scores, name)
    means = np.array([values[prompt] for prompt in sorted(values)])
    if len(means) < MIN_PROMPTS:
        return Cell(value=metric.mean, prompts=len(means))
    draws = generator(BOOTSTRAP_SEED, "ablation", name).integers(0, len(means), size=(resamples, len(means)))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means[draws].mean(axis=1), [tail, 1.0 - tail])
    return Cell(value=metric.mean, interval=_rounded((float(low), float(high))), prompts=len(means))


def _against(
    cell: Cell, scores: ScoreSet, baseline: ScoreSet, name: str, resamples: int, confidence: float
) -> Cell:  # fmt: skip
    if scores.metrics[name].higher_is_better is None:
        return cell  # a monitor has no better direction
    pair = paired_comparison(
        scores, baseline, name, resamples=resamples, confidence=confidence, seed=BOOTSTRAP_SEED
    )  # fmt: skip
    if pair is None:
        return cell
    bounds = _rounded(pair.interval) if pair.prompts >= MIN_PROMPTS else None
    return cell.model_copy(update={"gain": round(pair.gain, DECIMALS), "gain_interval": bounds})


def _rounded(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (round(bounds[0], DECIMALS), round(bounds[1], DECIMALS))
