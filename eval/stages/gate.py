"""Stage `gate`: scores, a baseline's scores and a suite's scores of the same checkpoint -> a verdict with its reasons.

The stage succeeds whatever the verdict; who runs the pipeline reads `passed`. A suite's scores have no baseline here:
what a channel names is another's to compare with, at promotion.
"""

from __future__ import annotations

from eval.config import (
    BetterThanBaseline,
    GateConfig,
    Maximum,
    Minimum,
    NonRegression,
    NotWorseThanBaseline,
    named_metrics,
)  # fmt: skip
from eval.non_regression import judge_non_regression
from eval.pairing import BOOTSTRAP_SEED, MIN_PROMPTS, Comparison, by_prompt, paired_comparison
from eval.records import (
    GATE,
    SCORES,
    STAND_IN,
    DimensionVerdict,
    GateVerdict,
    RuleVerdict,
    ScoreSet,
    read_record,
    write_record,
)  # fmt: skip
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext

__all__ = ["BOOTSTRAP_SEED", "MIN_PROMPTS", "Comparison", "decide", "paired_comparison", "run"]

Rule = Minimum | Maximum | BetterThanBaseline | NotWorseThanBaseline
_DECIMALS = 6
_PARTIAL = "partial, some videos of the protocol are missing"
_SLACK = 1e-9  # scores are rounded to six decimals; equality must not fail on a binary fraction


def run(context: StageContext) -> None:
    config = context.config(GateConfig)
    candidate = read_record(ScoreSet, context.input("scores"), SCORES)
    baseline, suite = (
        read_record(ScoreSet, context.input(name), SCORES) if name in context.inputs else None
        for name in ("baseline", "suite")
    )
    verdict = decide(config, candidate, baseline, BOOTSTRAP_SEED, suite)
    write_record(context.output("scores") / GATE, verdict)
    reasons = [r.reason for r in verdict.rules if not r.passed]
    context.summary("scores", {"passed": verdict.passed, "rules": len(verdict.rules), "refused": reasons})
    context.metrics({"passed": verdict.passed, "rules_failed": len(reasons)})


def decide(
    config: GateConfig, candidate: ScoreSet, baseline: ScoreSet | None, seed: int, suite: ScoreSet | None = None
) -> GateVerdict:
    """Judge every rule, each on the scores that have its metric.

    Raises ConfigError for a rule on a metric that was not taken or has no direction, or scores of two models."""
    if suite is not None:
        _check_same_model(candidate, suite)
    rules: list[DimensionVerdict | RuleVerdict] = []
    for rule in config.rules:
        against = (candidate, baseline) if suite is None or not _is_of(rule, suite) else (suite, None)
        rules += _verdicts(rule, config, *against, seed)
    return GateVerdict(
        passed=all(r.passed for r in rules),
        candidate=candidate.identity.checkpoint,
        baseline=baseline.identity.checkpoint if baseline else None,
        rules=tuple(rules),
    )


def _check_same_model(candidate: ScoreSet, suite: ScoreSet) -> None:
    """A checkpoint holds two models where it has averaged weights: itself and their average."""
    ours, theirs = candidate.identity, suite.identity
    if ours.checkpoint != theirs.checkpoint:
        raise ConfigError(
            "the suite's scores are of another checkpoint", value=theirs.checkpoint, where="gate",
            next_step="give the gate scores of one checkpoint",
        )  # fmt: skip
    if ours.ema != theirs.ema:
        kinds = ("averaged" if each.ema else "raw" for each in (theirs, ours))
        raise ConfigError(
            "the suite's scores are of the checkpoint's {} weights, the others of its {} ones".format(*kinds),
            value=theirs.checkpoint, where="gate", next_step="sample both with the same `ema`",
        )  # fmt: skip


def _is_of(rule: Rule | NonRegression, suite: ScoreSet) -> bool:
    """Whether a rule asks for what these scores have, or would have if all were measured."""
    name = suite.identity.suite.name if suite.identity.suite is not None else ""
    return bool(name) and any(metric.startswith(f"{name}.") for metric in named_metrics(rule))


def _verdicts(
    rule: Rule | NonRegression, config: GateConfig, candidate: ScoreSet, baseline: ScoreSet | None, seed: int
) -> tuple[RuleVerdict, ...]:
    """Of a rule on one metric, one; of a rule on many, one for each."""
    if not isinstance(rule, NonRegression):
        return (_judge(rule, config, candidate, baseline, seed),)
    if baseline is None:
        raise ConfigError("rule needs a baseline, none was given", value=rule.rule, where="gate.rules")
    return judge_non_regression(
        rule, candidate, baseline, resamples=config.resamples, confidence=config.confidence, seed=seed
    )


def _judge(rule: Rule, config: GateConfig, candidate: ScoreSet, baseline: ScoreSet | None, seed: int) -> RuleVerdict:
    figures = candidate.figures.figures if candidate.figures is not None else {}
    is_level = isinstance(rule, Minimum | Maximum)
    if rule.metric in figures and not is_level:
        raise ConfigError(
            "a figure over dimensions has no value of each video to pair", value=rule.metric, where="gate.rules",
            next_step="use minimum or maximum for it, or name its dimensions",
        )  # fmt: skip
    if rule.metric not in candidate.metrics and rule.metric not in figures:
        raise ConfigError(
            "gate asks for a metric that was not taken", value=rule.metric, where="gate.rules",
            next_step=f"use one of {', '.join((*candidate.metrics, *figures))}",
        )  # fmt: skip
    if isinstance(rule, Minimum | Maximum):
        return _judge_level(rule, candidate)
    return _judge_against(rule, config, candidate, baseline, seed)


def _judge_level(rule: Minimum | Maximum, candidate: ScoreSet) -> RuleVerdict:
    value, problem = _level(rule.metric, candidate)
    if value is None or problem:
        return _verdict(rule, rule.value, value, False, f"{rule.metric} {problem}")
    at_least = isinstance(rule, Minimum)
    passed = value >= rule.value - _SLACK if at_least else value <= rule.value + _SLACK
    limit = "minimum" if at_least else "maximum"
    relation = ("reaches" if at_least else "stays within") if passed else ("is below" if at_least else "is above")
    reason = f"{rule.metric} of {value:.4f} {relation} the {limit} of {rule.value:g}"
    prompts = len(by_prompt(candidate, rule.metric) if rule.metric in candidate.metrics else _prompts(candidate))
    return _verdict(rule, rule.value, value, passed, reason, prompts=prompts)


def _prompts(candidate: ScoreSet) -> set[int]:
    return {video.prompt_index for video in candidate.per_video}


def _level(name: str, candidate: ScoreSet) -> tuple[float | None, str]:
    """The mean of a metric, or a figure; or why it cannot be judged."""
    stand_in, found, suite = candidate.identity.stand_in, candidate.figures, candidate.identity.suite
    partial = f"cannot be judged: {_PARTIAL}" if suite is not None and suite.partial else ""
    if name in candidate.metrics:
        value = candidate.metrics[name].mean
        failed = found.failed.get(name) if found is not None else None
        if value is None:
            return None, f"has no score: {failed}" if failed else "applies to no video of the set"
        return value, f"cannot be judged: {STAND_IN}" if name in stand_in else partial
    assert found is not None, "the caller has looked"
    value = found.figures[name]
    if value is None:
        gone = found.missing.get(name, ())
        prefix = name.rpartition(".")[0]
        unsound = [each for each in gone if f"{prefix}.{each}" in stand_in]
        told = f"has no value without {', '.join(gone)}"
        return None, told + (f" ({', '.join(unsound)}: {STAND_IN})" if unsound else "")
    # Records from before dimensions were named have figures that stand on such weights.
    return value, f"cannot be judged: {STAND_IN}" if stand_in and set(stand_in) >= set(candidate.metrics) else partial


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
    if why := candidate.identity.apart(baseline.identity):
        reason = f"{rule.metric} cannot be compared: {why}"
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
