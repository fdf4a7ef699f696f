"""Scores with intervals, and what changed against another evaluation; drawn once a process, scores being immutable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.records import MetricScore, ScoreSet
from eval.stages.gate import BOOTSTRAP_SEED, MIN_PROMPTS, paired_comparison
from eval.vbench.intervals import figure_intervals
from m4v.core.rng import generator

RESAMPLES = 2000
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Score:
    """Mean over the videos that the metric applies to; `interval` is a bootstrap over prompts, None below
    `MIN_PROMPTS` of them."""

    mean: float | None
    interval: tuple[float, float] | None
    videos: int
    prompts: int


@dataclass(frozen=True)
class Change:
    """Gain over another evaluation of the same protocol, paired by prompt, in the direction of better. It is
    significant where `interval` leaves 0 out: a `regression` below it."""

    gain: float
    interval: tuple[float, float]

    @property
    def regression(self) -> bool:
        return self.interval[1] < 0

    @property
    def improvement(self) -> bool:
        return self.interval[0] > 0


def interval(score: MetricScore, prompts: Sequence[int], metric: str) -> tuple[tuple[float, float] | None, int]:
    """Bootstrap interval of the mean over prompts (a prompt's samples averaged), and the number of prompts. The draws
    depend on the metric's name alone, so a page shows the same figures every time."""
    groups: dict[int, list[float]] = {}
    for prompt, value in zip(prompts, score.values, strict=True):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    means = np.array([np.mean(groups[p]) for p in sorted(groups)])
    if len(means) < MIN_PROMPTS:
        return None, len(means)
    draws = generator(_SEED, "leaderboard", metric).integers(0, len(means), size=(RESAMPLES, len(means)))
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(means[draws].mean(axis=1), [tail, 1.0 - tail])
    return (float(low), float(high)), len(means)


_SCORES: dict[tuple[str, str], dict[str, Score]] = {}
_FIGURES: dict[tuple[str, str], dict[str, Score]] = {}
_CHANGES: dict[tuple[str, str], dict[str, Change]] = {}
_KEPT = 4096  # of each


def scores_of(uri: str, artifact_id: str, scores: ScoreSet) -> Mapping[str, Score]:
    """Of immutable scores, so the draws are made once a process."""
    place = (uri, artifact_id)
    if place not in _SCORES:
        _make_room(_SCORES)
        prompts = [video.prompt_index for video in scores.per_video]
        _SCORES[place] = {name: _score(name, metric, prompts) for name, metric in scores.metrics.items()}
    return _SCORES[place]


def figures_of(uri: str, artifact_id: str, scores: ScoreSet) -> Mapping[str, Score]:
    place = (uri, artifact_id)
    if scores.figures is None:
        return {}
    if place not in _FIGURES:
        _make_room(_FIGURES)
        bounds = figure_intervals(scores, resamples=RESAMPLES, confidence=CONFIDENCE)
        prompts = len({video.prompt_index for video in scores.per_video})
        _FIGURES[place] = {
            name: Score(value, bounds.get(name), len(scores.per_video), prompts)
            for name, value in scores.figures.figures.items()
        }
    return _FIGURES[place]


def _make_room(kept: dict[tuple[str, str], dict[str, Any]]) -> None:
    if len(kept) >= _KEPT:
        kept.pop(next(iter(kept)))


def changes(candidate: ScoreSet, baseline: ScoreSet) -> dict[str, Change]:
    """Of every metric that has a better direction and enough common prompts; nothing where more than the model
    differs between the two."""
    if candidate.identity.differences(baseline.identity):
        return {}
    found = {}
    for name, metric in candidate.metrics.items():
        if metric.higher_is_better is None or name not in baseline.metrics:
            continue
        pair = paired_comparison(
            candidate, baseline, name, resamples=RESAMPLES, confidence=CONFIDENCE, seed=BOOTSTRAP_SEED
        )
        if pair is not None and pair.prompts >= MIN_PROMPTS:
            found[name] = Change(pair.gain, pair.interval)
    return found


def changes_of(ids: tuple[str, str], candidate: ScoreSet, baseline: ScoreSet) -> Mapping[str, Change]:
    """`changes`, remembered by the two artifacts' ids."""
    if ids not in _CHANGES:
        _make_room(_CHANGES)
        _CHANGES[ids] = changes(candidate, baseline)
    return _CHANGES[ids]


def _score(name: str, metric: MetricScore, prompts: Sequence[int]) -> Score:
    bounds, count = interval(metric, prompts, name)
    return Score(metric.mean, bounds, metric.count, count)
