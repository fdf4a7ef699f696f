"""Candidate and baseline paired by prompt, and what a paired bootstrap over prompts says of their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.records import ScoreSet
from m4v.core.rng import generator

# The same scores give the same interval, whatever the recipe's seed and on every page.
BOOTSTRAP_SEED = 0
MIN_PROMPTS = 5  # below it a bootstrap interval says nothing
_CHUNK = 500  # resamples held in memory at once
_ENOUGH = 100  # resamples beyond the observed after which p is known well enough (Besag and Clifford 1991)
_EQUAL = 1e-12  # relative spread below which all gains count as one number


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline, paired by prompt (samples of a prompt averaged), in the direction of better."""

    gain: float
    interval: tuple[float, float]
    prompts: int


def paired_comparison(
    candidate: ScoreSet, baseline: ScoreSet, metric: str, *, resamples: int, confidence: float, seed: int
) -> Comparison | None:
    """Mean gain and its bootstrap interval over prompts; None when the metric applies to no common prompt.

    The draws depend on (seed, metric) alone.
    """
    gains = paired_gains(candidate, baseline, metric)
    if not len(gains):
        return None
    draws = generator(seed, "gate", metric).integers(0, len(gains), size=(resamples, len(gains)))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(gains[draws].mean(axis=1), [tail, 1.0 - tail])
    return Comparison(float(gains.mean()), (float(low), float(high)), len(gains))


def paired_gains(candidate: ScoreSet, baseline: ScoreSet, metric: str) -> npt.NDArray[np.float64]:
    """Gain of each common prompt in order, positive where the candidate is better; the metric must have a direction."""
    sign = 1.0 if candidate.metrics[metric].higher_is_better else -1.0
    ours, theirs = by_prompt(candidate, metric), by_prompt(baseline, metric)
    common = sorted(set(ours) & set(theirs))
    return sign * np.array([ours[p] - theirs[p] for p in common], dtype=np.float64)


def by_prompt(scores: ScoreSet, metric: str) -> dict[int, float]:
    """Mean of a prompt's samples; prompts to which the metric does not apply are left out."""
    found: dict[int, list[float]] = {}
    for video in scores.per_video:
        value = video.metrics[metric]
        if value is not None:
            found.setdefault(video.prompt_index, []).append(value)
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}


def worse_p_value(gains: npt.NDArray[np.float64], margin: float, *, resamples: int, rng: np.random.Generator) -> float:
    """One-sided p of "the mean gain is at least -margin": the larger of those of the studentised and of the percentile
    bootstrap over prompts.

    In the tails that many dimensions need, each alone refuses equals several times as often as it says: the percentile
    with few prompts, the studentised where few prompts differ at all, as in a metric of yes and no.
    """
    count, mean, spread = len(gains), float(gains.mean()), float(gains.std(ddof=1)) if len(gains) > 1 else 0.0
    if spread <= _EQUAL * max(1.0, abs(mean)):
        return 1.0 if mean + margin >= -_EQUAL else 1.0 / (resamples + 1)
    observed = (mean + margin) / (spread / math.sqrt(count))
    beyond = not_worse = done = 0
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = gains[rng.integers(0, count, size=(size, count))]
        shift = drawn.mean(axis=1) - mean
        error = drawn.std(axis=1, ddof=1) / math.sqrt(count)
        # A resample of one repeated value lies infinitely far on its side.
        beyond += int(np.count_nonzero(np.where(error > 0, shift <= observed * error, shift < 0)))
        not_worse += int(np.count_nonzero(shift + mean >= -margin))
        done += size
        if max(beyond, not_worse) >= _ENOUGH:
            break
    return (1 + max(beyond, not_worse)) / (done + 1)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p of each test: refusing where it is at most α keeps any false refusal below α (Holm 1979)."""
    adjusted = [1.0] * len(p_values)
    reached = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, (len(p_values) - done) * p_values[index])
        adjusted[index] = min(1.0, reached)
    return tuple(adjusted)
