"""The gate's rule `non_regression`: many dimensions, one error rate, dimensions that must not fall."""

from __future__ import annotations

import numpy as np
import pytest
from test_eval_gate import FOLLOW, MONITOR, NOISE, config, score_set, verdict

from eval.pairing import holm, worse_p_value
from eval.records import DimensionVerdict, GateVerdict, Identity, MetricScore, ScoreSet, VideoScore
from eval.stages.gate import decide
from m4v.core.errors import ConfigError

RULE: dict[str, object] = {"rule": "non_regression"}


def many(values: np.ndarray, checkpoint: str = "a") -> ScoreSet:
    """`values[prompt, dimension]`, all rising; dimensions `d0`, `d1`, …"""
    names = [f"d{n}" for n in range(values.shape[1])]
    identity = Identity(
        checkpoint=checkpoint * 64, ema=True, sampler={}, codec={}, text_encoder={}, video_codec="h264", prompt_set="p",
        seed_rule="s", base_seed=0, samples_per_prompt=1, frames=9, fps=8, height=64, width=64,
        metrics=dict.fromkeys(names, 1), metric_config={},
    )  # fmt: skip
    rows = tuple(
        VideoScore(
            file=str(i), prompt=str(i), prompt_index=i, sample_index=0,
            metrics=dict(zip(names, map(float, row), strict=True)), details={},
        )
        for i, row in enumerate(values)
    )  # fmt: skip
    metrics = {
        name: MetricScore(
            version=1, title=name, unit="", description="", higher_is_better=True, chance=None,
            mean=float(values[:, n].mean()), count=len(values), values=tuple(map(float, values[:, n])),
        )
        for n, name in enumerate(names)
    }  # fmt: skip
    return ScoreSet(identity=identity, metrics=metrics, per_video=rows)


def pair(seed: int, prompts: int = 24, dimensions: int = 6, fall: float = 0.0) -> tuple[ScoreSet, ScoreSet]:
    """Equal models apart from `fall` of dimension d0: correlated dimensions, one of them yes or no, one skewed."""
    rng = np.random.default_rng(seed)
    hardness = rng.random((prompts, 1))

    def model() -> np.ndarray:
        found = hardness + rng.normal(0, 0.1, (prompts, dimensions)) + rng.normal(0, 0.05, (prompts, 1))
        found[:, 1] = found[:, 1] > 0.5
        found[:, 2] = np.exp(2 * found[:, 2])
        return found

    ours, theirs = model(), model()
    ours[:, 0] -= fall
    return many(ours, "a"), many(theirs, "b")


def passes(seed: int, **values: int) -> bool:
    return decide(config(RULE, resamples=100), *pair(seed, **values), seed=seed).passed


def test_a_checkpoint_made_worse_is_refused_for_that_dimension_and_an_equal_one_passes() -> None:
    worse, base = pair(1, fall=0.2)
    found = verdict(worse, base, RULE)
    assert [r.metric for r in found.rules if not r.passed] == ["d0"]
    refused = found.rules[0]
    assert isinstance(refused, DimensionVerdict)
    assert "d0 is " in refused.reason
    assert "it fell significantly, family-wise error 2.5%" in refused.reason
    assert refused.adjusted_p is not None
    assert refused.p_value is not None
    assert refused.p_value <= refused.adjusted_p <= 0.025
    assert verdict(base, base, RULE).passed
    assert verdict(*pair(1), RULE).passed
    assert verdict(base, worse, RULE).passed


def test_every_prompt_a_little_worse_is_refused_without_any_spread() -> None:
    base = np.tile(np.linspace(0.2, 0.8, 8)[:, None], (1, 2))
    lower = base - np.array([0.0, 0.05])
    assert [r.passed for r in verdict(many(lower), many(base), RULE).rules] == [True, False]


def test_margins_let_a_dimension_fall_and_one_that_must_not_fall_has_none() -> None:
    worse, base = pair(1, fall=0.2)
    assert verdict(worse, base, {**RULE, "margin": 0.3}).passed
    assert verdict(worse, base, {**RULE, "margins": {"d0": 0.3}}).passed
    strict = verdict(worse, base, {**RULE, "margin": 0.3, "must_not_fall": ["d0"]})
    assert not strict.passed
    assert strict.rules[0].metric == "d0"
    assert "must not fall: it fell significantly" in strict.rules[0].reason
    with pytest.raises(ConfigError, match="must not fall and has a margin"):
        config({**RULE, "margins": {"d0": 0.1}, "must_not_fall": ["d0"]})


def test_dimensions_are_all_that_have_a_direction_or_those_that_are_named() -> None:
    ours, base = score_set([[0.5]] * 6, "a"), score_set([[0.5]] * 6, "b")
    assert {r.metric for r in verdict(ours, base, RULE).rules} == {FOLLOW, NOISE}
    assert [r.metric for r in verdict(ours, base, {**RULE, "metrics": [NOISE]}).rules] == [NOISE]
    with pytest.raises(ConfigError, match="is a monitor"):
        verdict(ours, base, {**RULE, "must_not_fall": [MONITOR]})
    with pytest.raises(ConfigError, match=r"was not taken: 'local.nothing'"):
        verdict(ours, base, {**RULE, "must_not_fall": ["local.nothing"]})
    with pytest.raises(ConfigError, match="needs a baseline"):
        verdict(ours, None, RULE)


def test_what_cannot_be_judged_refuses_where_it_was_asked_for() -> None:
    ours, base = score_set([[0.5]] * 4, "a"), score_set([[0.5]] * 4, "b")
    found = verdict(ours, base, {**RULE, "must_not_fall": [FOLLOW]})
    assert [(r.metric, r.passed) for r in found.rules] == [(FOLLOW, False), (NOISE, True)]
    assert "4 prompts of both sets are too few" in found.rules[0].reason
    other = verdict(score_set([[0.5]] * 6, "a"), score_set([[0.5]] * 6, "b", fps=24), RULE)
    assert not any(r.passed for r in other.rules)
    assert "fps differ" in other.rules[0].reason


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.6]) == (1.0, 1.0)
    assert holm([]) == ()


def test_p_value_is_near_that_of_a_t_test() -> None:
    rng = np.random.default_rng(3)
    # scipy.stats.ttest_1samp(gains, -0.01, alternative="less") of SciPy 1.17
    for shift, expected in ((0.0, 0.73151), (-0.02, 0.147019), (-0.05, 0.028482)):
        gains = rng.normal(shift, 0.1, 60)
        found = worse_p_value(gains, 0.01, resamples=4000, rng=np.random.default_rng(0))
        assert found == pytest.approx(expected, rel=0.25, abs=0.003)


def test_one_verdict_reads_back_as_the_kind_it_was() -> None:
    found = verdict(*pair(2), RULE, {"rule": "minimum", "metric": "d0", "value": 0.0})
    again = GateVerdict.model_validate(found.canonical())
    assert again == found
    assert [isinstance(r, DimensionVerdict) for r in again.rules] == [True] * 6 + [False]
    assert "adjusted_p" not in found.rules[-1].canonical()  # verdicts of other rules keep their bytes


def test_false_alarms_over_equal_pairs() -> None:
    assert sum(not passes(seed, dimensions=3) for seed in range(200)) <= 10  # 5 %; nominal 2.5 %


@pytest.mark.deep
@pytest.mark.parametrize(("prompts", "dimensions"), [(24, 6), (50, 16)])
def test_false_alarms_over_many_equal_pairs(prompts: int, dimensions: int) -> None:
    alarms = sum(not passes(seed, prompts=prompts, dimensions=dimensions) for seed in range(1000, 1400))
    assert alarms <= 20  # 5 %; nominal 2.5 %
