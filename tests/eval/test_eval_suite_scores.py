"""A suite's results as scores: the record that gates and pages read, and the identity that keeps results apart."""

import json

import pytest
from test_eval_gate import FOLLOW, score_set

from eval.config import GateConfig
from eval.records import STAND_IN, SampleSet, SampleVideo, ScoreSet
from eval.stages.gate import decide
from eval.suite_scores import suite_score_set
from eval.suites import DimensionResult, Tooling, VideoRow
from eval.vbench.aggregate import fast_figures, standard_figures
from eval.vbench.inputs import suite_inputs
from eval.vocabulary import Facts
from m4v.core.config import parse
from m4v.core.errors import ConfigError

DIMENSIONS = ("imaging_quality", "dynamic_degree")
TOOLING = Tooling(suite="vbench", version="0.1.5", environments={"core": "e1"}, weights={"musiq": "w1"})


def samples(checkpoint: str = "c") -> SampleSet:
    videos = tuple(
        SampleVideo(
            file=f"videos/{i:04d}-0000.mp4", prompt=f"prompt {i}", prompt_index=i, sample_index=0, seed=0,
            facts=Facts(), frames=9, fps=8, height=64, width=64, sha256="",
        )
        for i in range(6)
    )  # fmt: skip
    return SampleSet(
        checkpoint=checkpoint, ema=True, sampler={}, codec={}, text_encoder={}, crf=12, prompt_set="p", seed_rule="",
        base_seed=0, prompts=6, samples_per_prompt=1, videos=videos,
    )  # fmt: skip


def scored(checkpoint: str = "c", by: float = 0.0, tooling: Tooling = TOOLING, partial: bool = False) -> ScoreSet:
    made = samples(checkpoint)
    inputs = suite_inputs(made, "id", DIMENSIONS, "custom").model_copy(update={"partial": partial})
    rows = tuple(
        VideoRow(file=v.file, prompt_index=v.prompt_index, sample_index=0, value=0.5 + by + v.prompt_index / 100)
        for v in made.videos
    )
    results = [
        DimensionResult(dimension="imaging_quality", status="measured", expected=6, score=0.525 + by, rows=rows),
        DimensionResult(dimension="dynamic_degree", status="failed", expected=6, reason="killed by signal 9"),
    ]
    return suite_score_set(made, inputs, results, tooling, [standard_figures(results), fast_figures(results)])


def test_record_holds_rows_reasons_and_absent_totals() -> None:
    found = scored()
    text = json.dumps(found.canonical(), allow_nan=False)
    assert ScoreSet.model_validate_json(text) == found
    assert found.metrics["vbench.imaging_quality"].mean == pytest.approx(0.525)
    assert found.metrics["vbench.dynamic_degree"].mean is None
    assert found.figures is not None
    assert found.figures.failed == {"vbench.dynamic_degree": "killed by signal 9"}
    assert found.figures.figures["vbench.total"] is None
    assert "scene" in found.figures.missing["vbench.total"]
    assert found.identity.suite is not None
    assert found.identity.suite.videos == {"imaging_quality": 6, "dynamic_degree": 6}


def test_results_are_compared_only_where_nothing_but_the_model_differs() -> None:
    base = scored()
    assert scored("other").identity.differences(base.identity) == []
    for change in (
        {"version": "0.1.6"}, {"environments": {"core": "e2"}}, {"weights": {"musiq": "w2"}}, {"options": {"a": 1}},
    ):  # fmt: skip
        other = scored("other", tooling=TOOLING.model_copy(update=change))
        assert other.identity.differences(base.identity) == ["suite"]
    some = scored("other", partial=True)
    assert some.identity.differences(base.identity) == ["suite"]
    assert some.identity.differences(some.identity) == ["suite (partial)"]


def test_a_gate_reads_a_suite_s_scores() -> None:
    rule = {"rule": "not_worse_than_baseline", "metric": "vbench.imaging_quality", "significant": True}
    config = parse(GateConfig, {"rules": [rule]}, "gate")
    assert decide(config, scored("better", 0.01), scored(), 0).passed
    assert not decide(config, scored("worse", -0.01), scored(), 0).passed
    partial = decide(config, scored("worse", -0.01, partial=True), scored(partial=True), 0)
    assert "cannot be compared" in partial.rules[0].reason


STANDING_IN = TOOLING.model_copy(update={"options": {"published_weights": False, "stand_in": ["imaging_quality"]}})


def test_stand_in_weights_are_told_never_compared_and_pass_no_gate() -> None:
    base, other = scored(tooling=STANDING_IN), scored("other", 0.1, tooling=STANDING_IN)
    metric = base.metrics["vbench.imaging_quality"]
    assert metric.title == "Imaging quality (stand-in weights)"
    assert metric.description.endswith(f"; {STAND_IN}")
    assert base.metrics["vbench.dynamic_degree"].title == "Dynamic degree"
    assert base.identity.stand_in == ("vbench.imaging_quality",)
    assert other.identity.differences(base.identity) == ["suite (stand-in weights)"]
    assert other.identity.apart(base.identity) == STAND_IN
    assert scored("other", 0.1).identity.apart(base.identity) == STAND_IN
    rules: list[dict[str, object]] = [
        {"rule": "minimum", "metric": "vbench.imaging_quality", "value": 0.1},
        {"rule": "maximum", "metric": "vbench.imaging_quality", "value": 0.9},
        {"rule": "better_than_baseline", "metric": "vbench.imaging_quality"},
        {"rule": "non_regression", "metrics": ["vbench.imaging_quality"]},
    ]
    verdict = decide(parse(GateConfig, {"rules": rules}, "gate"), other, base, 0)
    assert [r.passed for r in verdict.rules] == [False] * 4
    assert all(STAND_IN in r.reason for r in verdict.rules)
    assert decide(parse(GateConfig, {"rules": rules}, "gate"), scored("other", 0.1), scored(), 0).passed


def test_a_record_that_names_no_stand_in_is_told_by_its_options() -> None:
    old = scored(tooling=TOOLING.model_copy(update={"options": {"published_weights": False}}))
    assert sorted(old.identity.stand_in) == ["vbench.dynamic_degree", "vbench.imaging_quality"]
    weightless = TOOLING.model_copy(update={"options": {"published_weights": False}, "weights": {}})
    assert scored(tooling=weightless).identity.stand_in == ()


def test_a_gate_judges_a_suite_beside_the_local_metrics_and_its_figures() -> None:
    local = score_set([[0.9], [0.8], [0.85], [0.95], [0.875]], "c")
    suite = scored("c" * 64)
    rules: list[dict[str, object]] = [
        {"rule": "minimum", "metric": FOLLOW, "value": 0.8},
        {"rule": "minimum", "metric": "vbench.imaging_quality", "value": 0.5},
        {"rule": "minimum", "metric": "vbench.dynamic_degree", "value": 0.1},
        {"rule": "minimum", "metric": "vbench.total", "value": 0.8},
    ]
    config = parse(GateConfig, {"rules": rules}, "gate")
    found = decide(config, local, None, 0, suite)
    assert [r.passed for r in found.rules] == [True, True, False, False]
    assert found.rules[2].reason == "vbench.dynamic_degree has no score: killed by signal 9"
    assert found.rules[3].reason.startswith("vbench.total has no value without ")
    with pytest.raises(ConfigError, match="of another checkpoint"):
        decide(config, local, None, 0, scored("d" * 64))
    paired = parse(GateConfig, {"rules": [{"rule": "better_than_baseline", "metric": "vbench.total"}]}, "gate")
    with pytest.raises(ConfigError, match="no value of each video"):
        decide(paired, suite, suite, 0)
    figured = suite.figures
    assert figured is not None
    whole = suite.model_copy(update={"figures": figured.model_copy(update={"figures": {"vbench.total": 0.83}})})
    (verdict,) = decide(parse(GateConfig, {"rules": rules[3:]}, "gate"), local, None, 0, whole).rules
    assert (verdict.passed, verdict.value, verdict.prompts) == (True, 0.83, 6)


def test_a_figure_that_stand_in_weights_would_bear_is_refused_by_their_names() -> None:
    rules = [{"rule": "minimum", "metric": "vbench.total", "value": 0.1}]
    config = parse(GateConfig, {"rules": rules}, "gate")
    local, suite = score_set([[0.9]] * 5, "c"), scored("c" * 64, tooling=STANDING_IN)
    assert suite.figures is not None
    gone = suite.figures.model_copy(update={"missing": {"vbench.total": ("imaging_quality", "scene")}})
    (verdict,) = decide(config, local, None, 0, suite.model_copy(update={"figures": gone})).rules
    assert not verdict.passed
    assert f"(imaging_quality: {STAND_IN})" in verdict.reason


def test_a_partial_measurement_passes_no_minimum_nor_maximum() -> None:
    rules: list[dict[str, object]] = [
        {"rule": "minimum", "metric": "vbench.imaging_quality", "value": 0.1},
        {"rule": "maximum", "metric": "vbench.imaging_quality", "value": 0.9},
        {"rule": "minimum", "metric": "vbench.avg4", "value": 0.1},
    ]
    config = parse(GateConfig, {"rules": rules}, "gate")
    local = score_set([[0.9]] * 5, "c")
    for partial in (False, True):
        suite = scored("c" * 64, partial=partial)
        assert suite.figures is not None
        whole = suite.figures.model_copy(update={"figures": {"vbench.avg4": 0.5}})
        found = decide(config, local, None, 0, suite.model_copy(update={"figures": whole}))
        assert [rule.passed for rule in found.rules] == [not partial] * 3
        assert all(("cannot be judged: partial" in rule.reason) is partial for rule in found.rules)


def test_raw_and_averaged_weights_of_a_checkpoint_are_two_models() -> None:
    config = parse(GateConfig, {"rules": [{"rule": "minimum", "metric": FOLLOW, "value": 0.1}]}, "gate")
    local, suite = score_set([[0.9]] * 5, "c"), scored("c" * 64)
    assert decide(config, local, None, 0, suite).passed
    raw = suite.model_copy(update={"identity": suite.identity.model_copy(update={"ema": False})})
    with pytest.raises(ConfigError, match="of the checkpoint's raw weights, the others of its averaged ones"):
        decide(config, local, None, 0, raw)
