"""Cost of an evaluation's videos in a plan: every forward counted, the paper's time on its own GPU, hours by type."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eval.config import GenerateConfig
from m4v.config import ModelConfig, SamplerConfig
from m4v.core.config import parse
from m4v.wan.config import WanConfig
from pipelines.cli.main import build_app
from pipelines.cli.preflight import print_generation
from pipelines.generation_cost import GPU_TYPES, GenerationCost, cost_of, video_work
from training.preflight.work import forward_flops
from training.template import WHOLE, Column

FULL = {"frames": 121, "height": 768, "width": 1280, "dtype": "bfloat16"}


def config(**values: object) -> GenerateConfig:
    return parse(GenerateConfig, {"prompts": ["one"], **FULL, **values}, "recipe")


def test_paper_s_video_takes_the_paper_s_time() -> None:
    found = cost_of(ModelConfig(), config(prompts="vbench", samples_per_prompt=5))
    assert (found.prompts, found.videos) == (944, 4720)
    assert found.seconds["a100-80gb"] == pytest.approx(226, abs=1)
    assert found.gpu_hours["a100-80gb"] == pytest.approx(226 * 4720 / 3600, rel=0.01)
    assert found.gpu_hours["h100-80gb"] < found.gpu_hours["a100-80gb"] / 3


def test_every_forward_is_counted() -> None:
    model = ModelConfig(
        width=32, heads=2, double_blocks=1, single_blocks=1, text_dim=384, pooled_dim=384, text_slots=16
    )
    sampler = {"steps_first": [3, 2, 1], "steps_later": [1, 1, 1], "guidance_first": 0.0, "guidance_later": 2.0}
    found = video_work(model, config(frames=9, height=64, width=64, sampler=sampler))
    first = sum(n * forward_flops(model, Column(stage, 1), 8, 8) for stage, n in enumerate((3, 2, 1)))
    second = 2 * sum(forward_flops(model, Column(stage, 2), 8, 8) for stage in range(3))
    assert found == (6 + 2 * 3, pytest.approx(first + second))
    quality = {**sampler, "self_guidance": 1.0, "self_guidance_from": 2}
    more = video_work(model, config(frames=9, height=64, width=64, sampler=SamplerConfig.model_validate(quality)))
    assert more == (found[0] + 1, pytest.approx(found[1] + forward_flops(model, Column(2, 2), 8, 8)))


def test_wan_s_steps_are_over_the_whole_clip() -> None:
    sampler = {"kind": "wan", "steps": 3, "guidance": 5.0}
    settings = config(frames=81, height=480, width=832, sampler=sampler)
    model = WanConfig()
    assert video_work(model, settings) == (6, pytest.approx(6 * forward_flops(model, Column(WHOLE, 21), 60, 104)))
    assert video_work(model, config(**{**settings.canonical(), "sampler": {**sampler, "guidance": 1.0}}))[0] == 3


def test_plan_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M4V_WEIGHTS", str(tmp_path / "weights"))
    words = ["plan", "m4v-768p", "--set", "generate.prompts=vbench-fast50"]
    told = json.loads(CliRunner().invoke(build_app("plan"), [*words, "--json"]).stdout)
    found = told["generation"]
    assert set(found) == {"generate.before_reward", "generate.trained", "generate.untrained", "generate.vbench"}
    assert found["generate.vbench"]["videos"] == 944 * 5
    assert found["generate.trained"]["videos"] == 50
    assert set(found["generate.trained"]["gpu_hours"]) == set(GPU_TYPES)
    (judged,) = (each for each in told["suite_costs"].values() if each["suite"] == "vbench")
    assert (judged["sampled_by"], judged["videos"], judged["judge_seconds"]) == ("generate.vbench", 944 * 5, None)
    assert judged["generation"] == found["generate.vbench"]
    each = found["generate.trained"]
    print_generation({"generate.trained": GenerationCost(**{**each, "assumptions": tuple(each["assumptions"])})})
    shown = capsys.readouterr().out
    assert f"generate.trained\t50\t50\t{each['flops'] / 1e15:.3g}\t" in shown
    assert each["assumptions"][0] in shown
