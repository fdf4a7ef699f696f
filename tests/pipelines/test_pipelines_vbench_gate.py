"""A recipe whose gate has rules on VBench's scores: what they are given, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from m4v.core.errors import ConfigError
from pipelines.graph import build_graph
from pipelines.recipe import Recipe, load_recipe

RULE = "{rule: minimum, metric: vbench.total, value: 0.8}"


def recipe(tmp_path: Path, rule: str, vbench: str = "{}") -> Recipe:
    path = tmp_path / "gated.yaml"
    local = "{rule: minimum, metric: local.flicker, value: 0.1}"
    path.write_text(
        f"extends: micro\nname: gated\nevaluation: {{vbench: {vbench}}}\ngate: {{rules: [{local}, {rule}]}}\n"
    )
    return load_recipe(str(path))


def test_the_gate_reads_the_suite_where_a_rule_asks_for_it(tmp_path: Path) -> None:
    nodes = {node.id: node for node in build_graph(recipe(tmp_path, RULE))}
    assert nodes["gate"].inputs["suite"] == ("vbench", "scores")
    assert list(nodes).index("vbench") < list(nodes).index("gate")
    plain = {node.id: node for node in build_graph(load_recipe("micro"))}
    assert set(plain["gate"].inputs) == {"scores", "baseline"}


@pytest.mark.parametrize(
    ("rule", "vbench", "why"),
    [
        (RULE, "null", "the recipe has no evaluation.vbench"),
        (RULE, "{dimensions: [scene]}", "dimensions lacks 'subject_consistency'"),
        (RULE, "{partial: true}", "evaluation.vbench is partial"),
        ("{rule: minimum, metric: vbench.avg4, value: 0.5}", "{}", "mode standard gives total, quality, semantic"),
        ("{rule: minimum, metric: vbench.beauty, value: 0.5}", "{}", "and no 'beauty'"),
        ("{rule: better_than_baseline, metric: vbench.scene}", "{}", "compare with what a channel names by its"),
        ("{rule: non_regression, must_not_fall: [vbench.scene]}", "{}", "with must_not_fall and margins"),
        (
            "{rule: minimum, metric: vbench-long.total, value: 0.8}",
            "{}",
            "measures suite vbench, whose scores are vbench",
        ),
        (RULE, "{suite: vbench2}", "measures suite vbench2, whose scores are vbench2"),
        (
            "{rule: minimum, metric: vbench2.scene, value: 0.5}",
            "{suite: vbench2}",
            "gives total, creativity, commonsense, controllability, human_fidelity, physics, the dimensions, and no",
        ),
        (
            "{rule: minimum, metric: vbench2.physics, value: 0.5}",
            "{suite: vbench2, dimensions: [mechanics, material]}",
            "dimensions lacks 'thermotics'",
        ),
        (
            "{rule: minimum, metric: vbench-i2v.total, value: 0.5}",
            "{}",
            "a recipe cannot measure it.*channel's settings",
        ),
        (RULE, "{suite: vbench-long}", "measures suite vbench-long, whose scores are vbench-long"),
        (
            "{rule: minimum, metric: vbench-long.avg4, value: 0.5}",
            "{suite: vbench-long}",
            "gives total, quality, semantic",
        ),
        ("{rule: minimum, metric: local.flicker, value: 0.5}", "{suite: vbench-long}", "is for videos of 5 s and more"),
    ],
)
def test_a_rule_that_the_suite_cannot_answer_is_refused(tmp_path: Path, rule: str, vbench: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        recipe(tmp_path, rule, vbench)
