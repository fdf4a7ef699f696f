"""Cost of an evaluation's videos in a plan: every forward counted, the paper's time on its own GPU, hours by type."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eval.config import GenerateConfig
from m4v.config import ModelConfig, SamplerConfig
from m4v.core.config import parse
from m4v.wan.config import WanConfig
from pipelines.cli.main import build_app
from pipelines.cli.preflight import print_generation
from pipelines.generation_cost import GPU_TYPES, GenerationCost, cost_of, video_work
from training.preflight.anchors import SAMPLING, Kernels
from training.preflight.work import forward_flops
from training.template import WHOLE, Column

FULL = {"frames": 121, "height": 768, "width": 1280, "dtype": "bfloat16"}


def config(**values: object) -> GenerateConfig:
    return parse(GenerateConfig, {"prompts": ["one"], **FULL, **values}, "recipe")


MEASURED = json.loads((Path(__file__).parents[1] / "training" / "preflight_measured.json").read_text())["videos"]
KERNELS = {"own": Kernels(own_scan=True, own_glue=True), "stock": Kernels(own_scan=False, own_glue=False)}


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['name']}, {row['frames']}, {row['kernels']}")
def test_a_video_takes_what_was_measured(row: Mapping[str, Any]) -> None:
    """Whole videos and their transformer's forwards alone; the paper's on an A100 are not what the figures rest on, so
    they say how well a GPU's time carries over to another."""
    model = ModelConfig(mixer=row["mixer"])
    found = cost_of(model, config(frames=row["frames"]), KERNELS[row["kernels"]])
    told = found.seconds[row["gpu"]]
    if "transformer_seconds" in row:
        beside = SAMPLING[row["kernels"], row["mixer"] == "attention"]
        forwards = told - beside.video_s - row["frames"] * beside.frame_s
        assert forwards == pytest.approx(row["transformer_seconds"], rel=0.02)
    else:
        assert told == pytest.approx(row["seconds"], rel=0.05 if row["gpu"] == "h200" else 0.2)


def test_videos_and_gpus_are_counted() -> None:
    found = cost_of(ModelConfig(), config(prompts="vbench", samples_per_prompt=5), KERNELS["own"])
    assert (found.prompts, found.videos) == (944, 4720)
    assert found.gpu_hours["h200"] == pytest.approx(found.seconds["h200"] * 4720 / 3600)
    assert found.seconds["h200"] < found.seconds["h100-80gb"] < found.seconds["a100-80gb"] / 2
    (words,) = found.assumptions
    assert SAMPLING["own", False].source.commit in words
    assert "a100-80gb: times 2.76" in words
    assert found.seconds["h200"] < cost_of(ModelConfig(), config(), KERNELS["stock"]).seconds["h200"]


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
