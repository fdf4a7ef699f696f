"""Stage `gate`: scores and a baseline's scores -> a verdict with its reasons in words.

The stage succeeds whatever the verdict; who runs the pipeline reads `passed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.config import BetterThanBaseline, GateConfig, Maximum, Minimum, NotWorseThanBaseline
from eval.records import GATE, SCORES, GateVerdict, RuleVerdict, ScoreSet, read_record, write_record
from m4v.core.errors import ConfigError
from m4v.core.rng import generator
from m4v.core.stage import StageContext

Rule = Minimum | Maximum | BetterThanBaseline | NotWorseThanBaseline
_DECIMALS = 6
# The same scores give the same interval, whatever the recipe's seed and on every page.
BOOTSTRAP_SEED = 0
MIN_PROMPTS = 5  # below it a bootstrap interval says nothing
_SLACK = 1e-9  # scores are rounded to six decimals; equality must not fail on a binary fraction


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline, paired by prompt (samples of a prompt averaged), in the direction of better."""

    gain: float
    interval: tuple[float, float]
    prompts: int


def run(context: StageContext) -> None:
    config = context.config(GateConfig)
    candidate = read_record(ScoreSet, context.input("scores"), SCORES)
    baseline = read_record(ScoreSet, context.input("baseline"), SCORES) if "baseline" in context.inputs else None
    verdict = decide(config, candidate, baseline, BOOTSTRAP_SEED)
    write_record(context.output("scores") / GATE, verdict)
    reasons = [r.reason for r in verdict.rules if not r.passed]
    context.summary("scores", {"passed": verdict.passed, "rules": len(verdict.rules), "refused": reasons})
    context.metrics({"passed": verdict.passed, "rules_failed": len(reasons)})


def decide(config: GateConfig, candidate: ScoreSet, baseline: ScoreSet | None, seed: int) -> GateVerdict:
    """Judge every rule; raises ConfigError for a rule on a metric that was not taken or has no direction."""
    rules = tuple(_judge(rule, config, candidate, baseline, seed) for rule in config.rules)
    return GateVerdict(
        passed=all(r.passed for r in rules),
        candidate=candidate.identity.checkpoint,
        baseline=baseline.identity.checkpoint if baseline else None,
        rules=rules,
    )


def paired_comparison(
    candidate: ScoreSet, baseline: ScoreSet, metric: str, *, resamples: int, confidence: float, seed: int
) -> Comparison | None:
    """Mean gain and its bootstrap interval over prompts; None when the metric applies to no common prompt.

    The draws depend on (seed, metric) alone.
    """
    sign = 1.0 if candidate.metrics[metric].higher_is_better else -1.0
    ours, theirs = _by_prompt(candidate, metric), _by_prompt(baseline, metric)
    common = sorted(set(ours) & set(theirs))
    if not common:
        return None
    gains = sign * np.array([ours[p] - theirs[p] for p in common])
    draws = generator(seed, "gate", metric).integers(0, len(gains), size=(resamples, len(gains)))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(gains[draws].mean(axis=1), [tail, 1.0 - tail])
    return Comparison(float(gains.mean()), (float(low), float(high)), len(common))


def _by_prompt(scores: ScoreSet, metric: str) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for video in scores.per_video:
        value = video.metrics[metric]
        if value is not None:
            found.setdefault(video.prompt_index, []).append(value)
    return {prompt: float(np.mean(values)) for prompt, values in found.items()}


def _judge(rule: Rule, config: GateConfig, candidate: ScoreSet, baseline: ScoreSet | None, seed: int) -> RuleVerdict:
    if rule.metric not in candidate.metrics:
        raise ConfigError(
            "gate asks for a metric that was not taken", value=rule.metric, where="gate.rules",
            next_step=f"use one of {', '.join(candidate.metrics)}",
        )  # fmt: skip
    if isinstance(rule, Minimum | Maximum):
        return _judge_level(rule, candidate)
    return _judge_against(rule, config, candidate, baseline, seed)


def _judge_level(rule: Minimum | Maximum, candidate: ScoreSet) -> RuleVerdict:
    score = candidate.metrics[rule.metric]
    if score.mean is None:
        return _verdict(rule, rule.value, score.mean, False, f"{rule.metric} applies to no video of the set")
    at_least = isinstance(rule, Minimum)
    passed = score.mean >= rule.value - _SLACK if at_least else score.mean <= rule.value + _SLACK
    limit = "minimum" if at_least else "maximum"
    relation = ("reaches" if at_least else "stays within") if passed else ("is below" if at_least else "is above")
    reason = f"{rule.metric} of {score.mean:.4f} {relation} the {limit} of {rule.value:g}"
    return _verdict(rule, rule.value, score.mean, passed, reason, prompts=len(_by_prompt(candidate, rule.metric)))


def _judge_against(
    rule: BetterThanBaseline | NotWorseThanBaseline,
    config: GateConfig,
    candidate: ScoreSet,
    baseline: ScoreSet | None,
    seed: int,
) -> RuleVerdict:
    score = candidate.metrics[rule.metric]
    threshold = rule.by if isinstance(rule, BetterThanBaseline) else -rule.margin
    if score.higher_is_better is None:
        raise ConfigError(
            "metric is a monitor: it has no better direction", value=rule.metric, where="gate.rules",
            next_step="use minimum and maximum for it",
        )  # fmt: skip
    if baseline is None:
        raise ConfigError("rule needs a baseline, none was given", value=rule.rule, where="gate.rules")
    if different := candidate.identity.differences(baseline.identity):
        reason = f"{rule.metric} cannot be compared: {', '.join(different)} differ between candidate and baseline"
        return _verdict(rule, threshold, score.mean, False, reason)
    found = paired_comparison(
        candidate, baseline, rule.metric, resamples=config.resamples, confidence=config.confidence, seed=seed
    )
    if found is None:
        return _verdict(rule, threshold, score.mean, False, f"{rule.metric} applies to no prompt of both sets")
    if isinstance(rule, BetterThanBaseline):
        measure = found.interval[0] if rule.significant else found.gain
    else:
        measure = found.interval[1] if rule.significant else found.gain
    enough = found.prompts >= MIN_PROMPTS or not rule.significant
    passed = enough and measure >= threshold - _SLACK
    base = baseline.metrics[rule.metric].mean
    reason = _explain(rule, found, score.mean, base, passed, config.confidence)
    if not enough:
        reason += f"; {found.prompts} prompts are too few for an interval ({MIN_PROMPTS} are needed)"
    return _verdict(
        rule, threshold, score.mean, passed, reason,
        baseline=base, comparison=found, confidence=config.confidence, prompts=found.prompts,
    )  # fmt: skip


def _explain(
    rule: BetterThanBaseline | NotWorseThanBaseline,
    found: Comparison,
    value: float | None,
    base: float | None,
    passed: bool,
    confidence: float,
) -> str:
    change = "better" if found.gain >= 0 else "worse"
    text = f"{rule.metric} is {value:.4f} against {base:.4f}: {abs(found.gain):.4f} {change}"
    text += (
        f" ({confidence:.0%} interval {found.interval[0]:+.4f} to {found.interval[1]:+.4f}, {found.prompts} prompts)"
    )
    if isinstance(rule, BetterThanBaseline):
        end = "the lower end must reach" if rule.significant else "must be better by"
        return f"{text}; {end} {rule.by:g}: {'holds' if passed else 'does not hold'}"
    end = "the whole interval may not lie beyond" if rule.significant else "may be worse by at most"
    return f"{text}; {end} {rule.margin:g}: {'holds' if passed else 'does not hold'}"


def _verdict(
    rule: Rule,
    threshold: float,
    value: float | None,
    passed: bool,
    reason: str,
    *,
    baseline: float | None = None,
    comparison: Comparison | None = None,
    confidence: float | None = None,
    prompts: int = 0,
) -> RuleVerdict:
    return RuleVerdict(
        metric=rule.metric,
        rule=rule.rule,
        threshold=threshold,
        value=value,
        baseline=baseline,
        difference=round(comparison.gain, _DECIMALS) if comparison else None,
        interval=(round(comparison.interval[0], _DECIMALS), round(comparison.interval[1], _DECIMALS))
        if comparison
        else None,
        confidence=confidence,
        prompts=prompts,
        passed=passed,
        reason=reason,
    )
