"""A suite's results as scores: the record that gates and pages read, and the identity that keeps results apart."""

import json

import pytest

from eval.config import GateConfig
from eval.records import SampleSet, SampleVideo, ScoreSet
from eval.stages.gate import decide
from eval.suite_scores import suite_score_set
from eval.suites import DimensionResult, Tooling, VideoRow
from eval.vbench.aggregate import fast_figures, standard_figures
from eval.vbench.inputs import suite_inputs
from eval.vocabulary import Facts
from m4v.core.config import parse

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
