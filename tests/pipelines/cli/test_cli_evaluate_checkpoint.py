"""`m4v evaluate run CHECKPOINT`: sampled for a suite and measured, as recorded stages; what a recipe has made of it is
not made again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "eval" / "vbench"))

from fake_interpreter import fake_environment

from m4v.core.errors import ConfigError, ExitClass
from pipelines.checkpoint_evaluation import sampling_config
from pipelines.generation.checkpoint import find_checkpoint
from pipelines.ledger import Ledger, RunRow
from pipelines.recipe import load_recipe

M4v = Callable[..., tuple[int, str, str]]


def sampled(home: Path) -> tuple[RunRow, RunRow]:
    """The newest run that sampled a checkpoint, and the one that scored its samples."""
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        made = ledger.runs(stage="generate", limit=1)[0]
        return made, ledger.consumers(made.output("samples").artifact_id)[0]


def checkpoint_of(home: Path) -> str:
    return next(port.artifact_id for port in sampled(home)[0].inputs if port.name == "checkpoint")


def test_what_a_recipe_has_made_is_a_hit(m4v: M4v, micro_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    checkpoint = checkpoint_of(micro_copy)
    prompts = micro_copy / "prompts.txt"
    prompts.write_text("\n".join(prompt.text for prompt in load_recipe("micro").generate.prompts))
    words = ("evaluate", "run", checkpoint[:16], "--suite", "local", "--prompts", str(prompts), "--json")
    code, out, told = m4v(*words)
    found = json.loads(out)
    assert (code, found["node"]["status"]) == (0, "hit"), told
    made, scored = sampled(micro_copy)
    assert found["samples"] == made.output("samples").artifact_id
    assert (scored.stage, found["scores"]) == ("evaluate", scored.output("scores").artifact_id)
    assert "1 videos of 1 prompts (64x64, 17 frames)" in told
    assert "GPU-hours" in told


def test_each_suite_has_prompts_of_its_own(micro_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    found = find_checkpoint(checkpoint_of(micro_copy), {}, ema=True)
    made = {suite: sampling_config(found, suite, None, None, "cpu") for suite in ("vbench", "fast", "local")}  # type: ignore[arg-type]
    assert {suite: (len(c.prompts), c.samples_per_prompt) for suite, c in made.items()} == {
        "vbench": (944, 5), "fast": (50, 1), "local": (24, 1),
    }  # fmt: skip
    assert {(c.frames, c.height, c.dtype) for c in made.values()} == {(17, 64, "float32")}
    assert sampling_config(found, "fast", None, 3, "cuda").dtype == "bfloat16"
    with pytest.raises(ConfigError, match="5 s and more: 17 frames"):
        sampling_config(found, "vbench-long", None, None, "cpu")
    with pytest.raises(ConfigError, match=r"instance_preservation of VBench-2\.0 is for videos of 2 s and more"):
        sampling_config(found, "vbench2", None, None, "cuda", ("instance_preservation",))
    with pytest.raises(ConfigError, match=r"no prompt is one of VBench-2\.0's for diversity.*--prompts vbench2"):
        sampling_config(found, "vbench2", "vbench", None, "cpu", ("diversity",))
    assert len(sampling_config(found, "vbench2", None, None, "cpu", ("diversity",)).prompts) == 1012


def test_a_suite_that_cannot_measure_here_is_refused_before_anything_is_sampled(
    m4v: M4v, micro_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("M4V_VBENCH", "VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(micro_copy / "none"))
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    before = sampled(micro_copy)[0].run_id
    code, out, err = m4v("evaluate", "run", checkpoint_of(micro_copy), "--suite", "fast")
    assert (code, out) == (ExitClass.CONFIG, "")
    assert "VBench cannot measure 8 of 8 dimensions here" in err
    assert err.count("\n") == 1
    assert sampled(micro_copy)[0].run_id == before
    code, _, err = m4v("evaluate", "run", "--suite", "local", "--check")
    assert code == ExitClass.CONFIG
    assert "leave --check out" in err


@pytest.mark.deep
def test_a_checkpoint_gets_scores_of_a_suite_with_lineage(
    m4v: M4v, micro_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    python = str(fake_environment(micro_copy / "core"))
    checkpoint = checkpoint_of(micro_copy)
    words = ("evaluate", "run", checkpoint, "--suite", "fast", "--dimensions", "temporal_flickering", "--core-python",
             python, "--prompts", "shapes-8", "--json")  # fmt: skip
    code, out, err = m4v(*words)
    found = json.loads(out)
    assert (code, found["node"]["status"]) == (0, "ran"), err
    again = json.loads(m4v(*words)[1])
    assert (again["node"]["status"], again["scores"]) == ("hit", found["scores"])
    assert checkpoint[:12] in m4v("lineage", "up", found["scores"])[1]
