"""What sampling, importing and gates depend on of VBench: prompts and names, never what measures."""

from __future__ import annotations

import pytest

from pipelines.keys import reachable_files

PROMPTS = {"__init__", "constants", "i2v_prompts", "prompt_suite", "v2_prompts"}


@pytest.mark.parametrize(
    "references",
    [
        ("eval.stages.generate:run", "eval.config:GenerateConfig"),
        ("eval.stages.import_videos:run", "eval.importing.config:ImportVideosConfig"),
        ("eval.stages.evaluate:run", "eval.config:EvaluateConfig"),
        ("eval.stages.gate:run", "eval.config:GateConfig"),
    ],
)
def test_a_change_in_what_measures_makes_no_sampled_video_stale(references: tuple[str, ...]) -> None:
    reached = [path.removesuffix(".py") for path in reachable_files(references)]

    assert {path.removeprefix("eval/vbench/") for path in reached if path.startswith("eval/vbench/")} == PROMPTS
    assert "eval/suites" not in reached
