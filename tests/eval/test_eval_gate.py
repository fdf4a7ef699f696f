"""Stage `gate`: each rule, its reason in words, and a bootstrap that keeps its error rate."""

from pathlib import Path

import numpy as np
import pytest
from eval_support import publish, stage_context

from eval.config import GateConfig
from eval.records import (
    GATE,
    SCORES,
    GateVerdict,
    Identity,
    MetricScore,
    ScoreSet,
    VideoScore,
    read_record,
    write_record,
)
from eval.stages import gate
from eval.stages.gate import decide, paired_comparison
from m4v.core.artifacts import ArtifactKind
from m4v.core.config import parse
from m4v.core.errors import ConfigError

FOLLOW, NOISE, MONITOR = "local.colour_follow", "local.lower_is_better", "local.motion"


def score_set(
    values: list[list[float]], checkpoint: str = "a", lower: list[float] | None = None, fps: float = 8
) -> ScoreSet:
    """`values[prompt][sample]` of one metric that rises, one that should fall, and one monitor."""
    identity = Identity(
        checkpoint=checkpoint * 64, ema=True, sampler={}, codec={}, text_encoder={}, video_codec="h264", prompt_set="p",
        seed_rule="s", base_seed=0, samples_per_prompt=len(values[0]), frames=9, fps=fps, height=64, width=64,
        metrics={FOLLOW: 1, NOISE: 1, MONITOR: 1}, metric_config={},
    )  # fmt: skip
    lower = lower or [0.5] * len(values)
    rows = tuple(
        VideoScore(
            file=f"{i}-{j}", prompt=str(i), prompt_index=i, sample_index=j,
            metrics={FOLLOW: value, NOISE: lower[i], MONITOR: 1.0}, details={},
        )
        for i, samples in enumerate(values) for j, value in enumerate(samples)
    )  # fmt: skip

    def score(name: str, better: bool | None) -> MetricScore:
        found = [r.metrics[name] for r in rows]
        return MetricScore(
            version=1, title=name, unit="", description="", higher_is_better=better, chance=None,
            mean=float(np.mean(found)), count=len(found), values=tuple(found),
        )  # fmt: skip

    metrics = {FOLLOW: score(FOLLOW, True), NOISE: score(NOISE, False), MONITOR: score(MONITOR, None)}
    return ScoreSet(identity=identity, metrics=metrics, per_video=rows)


def config(*rules: dict[str, object], **values: object) -> GateConfig:
    return parse(GateConfig, {"rules": list(rules), **values}, "gate")


def verdict(candidate: ScoreSet, baseline: ScoreSet | None, *rules: dict[str, object]) -> GateVerdict:
    return decide(config(*rules), candidate, baseline, seed=0)


GOOD = score_set([[0.9], [0.8], [0.85], [0.95], [0.875]], "a")
BAD = score_set([[0.5], [0.55], [0.45], [0.6], [0.525]], "b")


@pytest.mark.parametrize(
    ("rule", "passed", "words"),
    [
        ({"rule": "minimum", "metric": FOLLOW, "value": 0.8}, True, "of 0.8750 reaches the minimum of 0.8"),
        ({"rule": "minimum", "metric": FOLLOW, "value": 0.875}, True, "reaches"),
        ({"rule": "minimum", "metric": FOLLOW, "value": 0.9}, False, "of 0.8750 is below the minimum of 0.9"),
        ({"rule": "maximum", "metric": MONITOR, "value": 0.5}, False, "is above the maximum"),
        ({"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.2}, True, "0.3500 better"),
        ({"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.36}, False, "does not hold"),
        ({"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.2, "significant": True}, True, "lower end"),
        ({"rule": "not_worse_than_baseline", "metric": FOLLOW, "margin": 0.0}, True, "holds"),
    ],
)  # fmt: skip
def test_rules_and_reasons(rule: dict[str, object], passed: bool, words: str) -> None:
    found = verdict(GOOD, BAD, rule)
    assert found.passed is passed
    assert words in found.rules[0].reason


def test_worse_candidate_is_refused_and_equal_one_passes() -> None:
    rule = {"rule": "not_worse_than_baseline", "metric": FOLLOW, "margin": 0.02}
    worse = verdict(BAD, GOOD, rule)
    assert not worse.passed
    assert "0.3500 worse" in worse.rules[0].reason
    assert verdict(GOOD, GOOD, rule).passed
    assert not verdict(GOOD, GOOD, {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.01}).passed


def test_metric_that_should_fall() -> None:
    low, high = score_set([[0.5]] * 3, "a", lower=[0.1] * 3), score_set([[0.5]] * 3, "b", lower=[0.4] * 3)
    rule = {"rule": "better_than_baseline", "metric": NOISE, "by": 0.25}
    assert verdict(low, high, rule).passed
    assert verdict(low, high, rule).rules[0].difference == pytest.approx(0.3)
    assert not verdict(high, low, rule).passed


def test_all_rules_must_hold() -> None:
    rules = [{"rule": "minimum", "metric": FOLLOW, "value": 0.1}, {"rule": "minimum", "metric": FOLLOW, "value": 0.99}]
    found = verdict(GOOD, BAD, *rules)
    assert [r.passed for r in found.rules] == [True, False]
    assert not found.passed


def test_results_of_another_protocol_are_never_subtracted() -> None:
    other = score_set([[0.1]] * 5, "b", fps=24)
    rule = {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.0}
    found = verdict(GOOD, other, rule)
    assert not found.passed
    assert "cannot be compared: fps differ" in found.rules[0].reason
    assert found.rules[0].difference is None


def test_an_interval_needs_some_prompts() -> None:
    rule = {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.1, "significant": True}
    found = verdict(score_set([[0.9]] * 4, "a"), score_set([[0.1]] * 4, "b"), rule)
    assert not found.passed
    assert "4 prompts are too few for an interval" in found.rules[0].reason


def test_averaged_weights_belong_to_the_model() -> None:
    plain = BAD.model_copy(update={"identity": BAD.identity.model_copy(update={"ema": False})})
    assert verdict(GOOD, plain, {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.2}).passed


def test_rules_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"was not taken: 'local.nothing'"):
        verdict(GOOD, BAD, {"rule": "minimum", "metric": "local.nothing", "value": 1})
    with pytest.raises(ConfigError, match="is a monitor"):
        verdict(GOOD, BAD, {"rule": "better_than_baseline", "metric": MONITOR})
    with pytest.raises(ConfigError, match="needs a baseline"):
        verdict(GOOD, None, {"rule": "better_than_baseline", "metric": FOLLOW})
    with pytest.raises(ConfigError, match=r"unknown key|does not match"):
        config({"rule": "at_least", "metric": FOLLOW, "value": 1})


def test_samples_of_a_prompt_count_once() -> None:
    """The unit of the bootstrap is the prompt: its samples are averaged first."""
    candidate = score_set([[0.9, 0.7], [0.6, 0.6]], "a")
    baseline = score_set([[0.5, 0.5], [0.5, 0.5]], "b")
    found = paired_comparison(candidate, baseline, FOLLOW, resamples=200, confidence=0.9, seed=1)
    assert found is not None
    assert found.prompts == 2
    assert found.gain == pytest.approx(0.2)
    assert found.interval == (pytest.approx(0.1), pytest.approx(0.3))


def test_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = score_set(rng.random((12, 1)).tolist(), "a"), score_set(rng.random((12, 1)).tolist(), "b")
    intervals = [paired_comparison(a, b, FOLLOW, resamples=500, confidence=0.95, seed=s) for s in (1, 1, 2)]
    assert intervals[0] == intervals[1]
    assert intervals[0] != intervals[2]


def test_significant_rule_seldom_fires_on_equal_models() -> None:
    rng = np.random.default_rng(7)
    rule = {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.0, "significant": True}
    settings, false_alarms, trials = config(rule, resamples=400), 0, 150
    for trial in range(trials):
        base = rng.random(24)
        a = score_set((base + rng.normal(0, 0.1, 24))[:, None].tolist(), "a")
        b = score_set((base + rng.normal(0, 0.1, 24))[:, None].tolist(), "b")
        false_alarms += decide(settings, a, b, seed=trial).passed
    assert false_alarms <= 0.08 * trials  # nominal 2.5 %; a bootstrap over 24 prompts is a little loose


def test_stage_succeeds_when_the_gate_refuses(tmp_path: Path) -> None:
    artifacts = {}
    for name, scores in (("scores", BAD), ("baseline", GOOD)):
        write_record(tmp_path / name / SCORES, scores)
        artifacts[name] = publish(tmp_path / name, ArtifactKind.SCORES)
    rule = {"rule": "better_than_baseline", "metric": FOLLOW, "by": 0.1}
    context = stage_context(tmp_path, "gate", config(rule), artifacts, "scores", ArtifactKind.SCORES)
    gate.run(context)
    found = read_record(GateVerdict, publish(context.output("scores"), ArtifactKind.SCORES), GATE)
    assert not found.passed
    assert context.collected_metrics()["passed"] is False
    assert context.summaries()["scores"]["refused"] == [found.rules[0].reason]
