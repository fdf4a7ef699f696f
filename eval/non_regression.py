"""The rule `non_regression`: no dimension may be significantly worse, with one error rate for all of them together.

`judge_non_regression` takes one comparison, `judge_together` those of several suites as one family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.config import NonRegression
from eval.pairing import MIN_PROMPTS, Comparison, holm, paired_comparison, paired_gains, worse_p_value
from eval.records import DimensionVerdict, ScoreSet
from m4v.core.errors import ConfigError
from m4v.core.rng import generator

_DECIMALS = 6
# So many resamples lie beyond the smallest p that Holm asks for, however many dimensions there are.
_BEYOND = 20
Pair = tuple[ScoreSet, ScoreSet]  # candidate, baseline


@dataclass(frozen=True)
class _Dimension:
    """One dimension's comparison; `p` None where it cannot be judged."""

    metric: str
    margin: float
    must_not_fall: bool
    found: Comparison | None
    p: float | None


def judge_non_regression(
    rule: NonRegression, candidate: ScoreSet, baseline: ScoreSet, *, resamples: int, confidence: float, seed: int
) -> tuple[DimensionVerdict, ...]:
    """A verdict for each dimension of the rule, in its order; those that must not fall come first.

    Raises ConfigError for a dimension that was not taken or has no better direction, or when none is left.
    """
    pairs = ((candidate, baseline),)
    return judge_together(rule, pairs, resamples=resamples, confidence=confidence, seed=seed)


def judge_together(
    rule: NonRegression, pairs: Sequence[Pair], *, resamples: int, confidence: float, seed: int
) -> tuple[DimensionVerdict, ...]:
    """As `judge_non_regression`, of dimensions that lie in several scores: Holm is over all of them."""
    dimensions = _dimensions(rule, pairs)
    most = max(resamples, math.ceil(_BEYOND * len(dimensions) / rule.family_wise))
    tested: list[tuple[_Dimension, Pair, str]] = []
    for name, (candidate, baseline) in dimensions.items():
        apart = candidate.identity.apart(baseline.identity)
        judged = (
            _Dimension(name, 0.0, False, None, None)
            if apart
            else _test(rule, name, candidate, baseline, most, resamples, confidence, seed)
        )
        tested.append((judged, (candidate, baseline), apart))
    adjusted = iter(holm([d.p for d, _, _ in tested if d.p is not None]))
    rows = []
    for dimension, (candidate, baseline), apart in tested:
        if apart:
            rows.append(_row(rule, dimension, candidate, None, False, f"cannot be compared: {apart}"))
            continue
        whole = next(adjusted) if dimension.p is not None else None
        rows.append(_judge(rule, dimension, whole, candidate, baseline, confidence))
    return tuple(rows)


def _dimensions(rule: NonRegression, pairs: Sequence[Pair]) -> dict[str, Pair]:
    """By name, the scores that have it."""
    found: dict[str, Pair] = {}
    for name in (*rule.must_not_fall, *rule.metrics, *rule.margins):
        pair = next((pair for pair in pairs if name in pair[0].metrics), None)
        if pair is None:
            raise ConfigError(
                "gate asks for a metric that was not taken", value=name, where="gate.rules",
                next_step=f"use one of {', '.join(metric for candidate, _ in pairs for metric in candidate.metrics)}",
            )  # fmt: skip
        if pair[0].metrics[name].higher_is_better is None:
            raise ConfigError(
                "metric is a monitor: it has no better direction", value=name, where="gate.rules",
                next_step="use minimum and maximum for it",
            )  # fmt: skip
        found[name] = pair
    for pair in pairs if not rule.metrics else ():
        for name, metric in pair[0].metrics.items():
            if metric.higher_is_better is not None:
                found.setdefault(name, pair)
    if not found:
        raise ConfigError("no metric of the scores has a better direction", where="gate.rules")
    return found


def _test(
    rule: NonRegression,
    metric: str,
    candidate: ScoreSet,
    baseline: ScoreSet,
    most: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> _Dimension:
    strict = metric in rule.must_not_fall
    margin = 0.0 if strict else rule.margins.get(metric, rule.margin)
    found = paired_comparison(candidate, baseline, metric, resamples=resamples, confidence=confidence, seed=seed)
    if found is None or found.prompts < MIN_PROMPTS:
        return _Dimension(metric, margin, strict, found, None)
    gains = paired_gains(candidate, baseline, metric)
    rng = generator(seed, "gate", "non_regression", metric)
    return _Dimension(metric, margin, strict, found, worse_p_value(gains, margin, resamples=most, rng=rng))


def _judge(
    rule: NonRegression,
    dimension: _Dimension,
    adjusted: float | None,
    candidate: ScoreSet,
    baseline: ScoreSet,
    confidence: float,
) -> DimensionVerdict:
    found = dimension.found
    if found is None or adjusted is None:
        asked = dimension.metric in (*rule.must_not_fall, *rule.metrics, *rule.margins)
        count = found.prompts if found else 0
        why = f"cannot be judged: {count} prompts of both sets are too few ({MIN_PROMPTS} are needed)"
        return _row(rule, dimension, candidate, baseline, not asked, why)
    passed = adjusted > rule.family_wise
    value, base = candidate.metrics[dimension.metric].mean, baseline.metrics[dimension.metric].mean
    change = "better" if found.gain >= 0 else "worse"
    why = (
        f"is {value:.4f} against {base:.4f}: {abs(found.gain):.4f} {change} ({confidence:.0%} interval "
        f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}, {found.prompts} prompts, adjusted p {adjusted:.3g}); "
    )
    allowed = "must not fall" if dimension.must_not_fall else f"may be worse by at most {dimension.margin:g}"
    held = "no significant fall" if passed else "it fell significantly"
    why += f"{allowed}: {held}, family-wise error {rule.family_wise:.1%}"
    return _row(rule, dimension, candidate, baseline, passed, why, adjusted=adjusted, confidence=confidence)


def _row(
    rule: NonRegression,
    dimension: _Dimension,
    candidate: ScoreSet,
    baseline: ScoreSet | None,
    passed: bool,
    why: str,
    *,
    adjusted: float | None = None,
    confidence: float | None = None,
) -> DimensionVerdict:
    found, name = dimension.found, dimension.metric
    return DimensionVerdict(
        metric=name,
        rule=rule.rule,
        threshold=-dimension.margin,
        value=candidate.metrics[name].mean,
        baseline=baseline.metrics[name].mean if baseline else None,
        difference=round(found.gain, _DECIMALS) if found else None,
        interval=(round(found.interval[0], _DECIMALS), round(found.interval[1], _DECIMALS)) if found else None,
        confidence=confidence,
        prompts=found.prompts if found else 0,
        passed=passed,
        reason=f"{name} {why}",
        must_not_fall=dimension.must_not_fall,
        p_value=None if dimension.p is None else round(dimension.p, _DECIMALS),
        adjusted_p=None if adjusted is None else round(adjusted, _DECIMALS),
        family_wise=rule.family_wise,
    )
