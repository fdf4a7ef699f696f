"""Stage `gate`: scores and a baseline's scores -> a verdict with its reasons in words.

The stage succeeds whatever the verdict; who runs the pipeline reads `passed`.
"""

from __future__ import annotations

from eval.config import BetterThanBaseline, GateConfig, Maximum, Minimum, NonRegression, NotWorseThanBaseline
from eval.non_regression import judge_non_regression
from eval.pairing import BOOTSTRAP_SEED, MIN_PROMPTS, Comparison, by_prompt, paired_comparison
from eval.records import GATE, SCORES, GateVerdict, RuleVerdict, ScoreSet, read_record, write_record
from m4v.core.errors import ConfigError
from m4v.core.stage import StageContext

__all__ = ["BOOTSTRAP_SEED", "MIN_PROMPTS", "Comparison", "decide", "paired_comparison", "run"]

Rule = Minimum | Maximum | BetterThanBaseline | NotWorseThanBaseline
_DECIMALS = 6
_SLACK = 1e-9  # scores are rounded to six decimals; equality must not fail on a binary fraction


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
    rules = tuple(verdict for rule in config.rules for verdict in _verdicts(rule, config, candidate, baseline, seed))
    return GateVerdict(
        passed=all(r.passed for r in rules),
        candidate=candidate.identity.checkpoint,
        baseline=baseline.identity.checkpoint if baseline else None,
        rules=rules,
    )


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
    return _verdict(rule, rule.value, score.mean, passed, reason, prompts=len(by_prompt(candidate, rule.metric)))


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
