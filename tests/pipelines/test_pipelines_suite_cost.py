"""Cost of suites in a plan: videos, readings of each dimension, what is known of the time, what is too few."""

from __future__ import annotations

from typing import Any

import pytest

from eval.config import EvaluateConfig, GenerateConfig
from eval.vbench.config import VBenchConfig
from eval.vbench.prompt_suite import prompts_of
from m4v.core.config import FrozenModel, parse
from pipelines import stages
from pipelines.cli.suites import print_suite_costs
from pipelines.plan import Expectation, Plan, PlanStatus, PlanStep
from pipelines.spec import StageNode
from pipelines.suite_cost import LONG, PAPER, VBENCH2, SuiteCost, suite_costs


def cost(measuring: FrozenModel, prompts: object = "vbench", history: float | None = None, **given: Any) -> SuiteCost:
    sampling = parse(
        GenerateConfig, {"prompts": prompts, "frames": 9, "height": 64, "width": 64, **given}, "recipe"
    )  # fmt: skip
    spec = stages.VBENCH if isinstance(measuring, VBenchConfig) else stages.EVALUATE
    nodes = [
        StageNode(id="generate", spec=stages.GENERATE, config=sampling),
        StageNode(id="scores", spec=spec, config=measuring, inputs={"samples": ("generate", "samples")}),
    ]
    steps = [
        PlanStep(
            node_id=n.id,
            stage=n.spec.name,
            status=PlanStatus.RUN,
            expectation=Expectation.RUN,
            reason="",
            estimate_s=history,
        )
        for n in nodes
    ]
    return suite_costs(nodes, Plan("recipe", tuple(steps)), {})["scores"]


def test_full_vbench_is_4720_videos_and_every_dimension_reads_its_own() -> None:
    found = cost(VBenchConfig(), samples_per_prompt=5)
    assert (found.videos, len(found.readings), found.short) == (4720, 16, ())
    assert found.readings["temporal_flickering"] == 75 * 5
    assert found.readings["subject_consistency"] == found.readings["dynamic_degree"] == 72 * 5
    assert found.total_readings == 5 * (75 + 3 * 72 + 2 * 86 + 3 * 93 + 100 + 100 + 90 + 85 + 84 + 82 + 79)
    assert found.assumptions == (PAPER,)
    filtered = {"suite": "vbench", "samples": {"temporal_flickering": 25}}
    static = cost(VBenchConfig(static_filter=True), filtered, samples_per_prompt=5)
    assert (static.videos, static.readings["temporal_flickering"]) == (6220, 75 * 25)
    assert cost(VBenchConfig(static_filter=True), samples_per_prompt=5).short == ("temporal_flickering",)


def test_vbench_2_is_3206_videos_and_diversity_reads_twenty_a_prompt() -> None:
    found = cost(VBenchConfig(suite="vbench2"), "vbench2", samples_per_prompt=3)
    assert (found.suite, found.videos, len(found.readings), found.short) == ("vbench2", 3206, 18, ())
    assert found.readings == found.expected
    assert (found.readings["diversity"], found.total_readings) == (200, 3 * (1229 - 10) + 200)
    assert found.assumptions == (VBENCH2,)
    few = cost(VBenchConfig(suite="vbench2"), {"suite": "vbench2", "samples": {"diversity": 3}}, samples_per_prompt=3)
    assert few.short == ("diversity",)
    assert set(cost(VBenchConfig(suite="vbench2"), samples_per_prompt=5).readings.values()) == {0}, "VBench's prompts"


def test_vbench_long_reads_five_videos_a_prompt_even_of_its_filter() -> None:
    found = cost(VBenchConfig(suite="vbench-long", static_filter=True), samples_per_prompt=5)
    assert (found.suite, found.videos, found.short) == ("vbench-long", 4720, ())
    assert found.readings["temporal_flickering"] == found.expected["temporal_flickering"] == 75 * 5
    assert found.assumptions == (LONG,)


def test_too_few_videos_are_told_before_they_are_sampled() -> None:
    found = cost(VBenchConfig(dimensions=("scene", "color")), {"suite": "vbench", "dimensions": ["color"]})
    assert found.readings == {"color": 85, "scene": 0}
    assert found.short == ("color", "scene")


def test_two_wordings_of_one_prompt_are_read_both() -> None:
    scored = prompts_of("color")[0].prompt
    wordings = [{"text": text, "scored_as": scored} for text in ("in one way", "in another")]
    assert cost(VBenchConfig(dimensions=("color",)), wordings, samples_per_prompt=2).readings == {"color": 4}


def test_custom_and_local_metrics_read_every_video_and_history_replaces_the_paper() -> None:
    fast = cost(VBenchConfig(mode="custom", dimensions=("aesthetic_quality",)), "vbench-fast50", history=90.0)
    assert (fast.readings, fast.expected, fast.judge_seconds, fast.assumptions) == (
        {"aesthetic_quality": 50},
        {},
        90.0,
        (),
    )
    local = cost(EvaluateConfig(metrics=("local.flicker", "local.motion")), "shapes-8", samples_per_prompt=2)
    assert (local.suite, local.videos, local.total_readings, local.assumptions) == ("local", 16, 32, ())


def test_a_plan_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_suite_costs({"vbench": cost(VBenchConfig(dimensions=("color",)), samples_per_prompt=4)})
    shown = capsys.readouterr().out
    assert f"vbench\tvbench\tgenerate\t{944 * 4}\t1\t{85 * 4}\t" in shown
    assert "too few for color" in shown
    assert f"not known: {PAPER}" in shown
