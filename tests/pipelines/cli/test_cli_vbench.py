"""`m4v evaluate run`: what is needed is told before anything runs; samples of a run get scores with lineage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "eval" / "vbench"))

from fake_interpreter import fake_environment

from eval.vbench.constants import DIMENSIONS
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError
from pipelines.graph import build_graph
from pipelines.ledger import Ledger
from pipelines.recipe import load_recipe

M4v = Callable[..., tuple[int, str, str]]


def test_check_tells_every_need_and_ends_with_10_when_something_is_missing(
    m4v: M4v, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("M4V_VBENCH", "VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    code, out, _ = m4v("evaluate", "run", "--check", "--json")
    found = json.loads(out)
    assert code == 10
    assert [d["dimension"] for d in found["dimensions"]] == list(DIMENSIONS)
    assert all(r["problem"] and r["next_step"] for r in found["requirements"])
    assert {r["variable"] for r in found["requirements"]} == {"M4V_VBENCH", "VBENCH_CACHE_DIR", "TORCH_HOME", "HF_HOME"}
    python = str(fake_environment(tmp_path / "core"))
    flicker = ("evaluate", "run", "--check", "--dimensions", "temporal_flickering", "--core-python", python)
    assert m4v(*flicker)[0] == 0
    table = m4v("evaluate", "run", "--check")[1]
    assert "amt\tis not there\tabout 12.0 MiB" in table
    assert "next: m4v evaluate setup legacy" in table


def test_check_of_vbench_long_asks_for_its_own_environments(m4v: M4v, tmp_path: Path) -> None:
    python = str(fake_environment(tmp_path / "long", "long"))
    long = ("evaluate", "run", "--check", "--suite", "vbench-long", "--dimensions", "motion_smoothness,scene")
    code, out, _ = m4v(*long, "--long-python", python, "--cache-dir", str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 10
    assert {d["dimension"]: d["environment"] for d in found["dimensions"]} == {
        "motion_smoothness": "long", "scene": "long-legacy"
    }  # fmt: skip
    needs = {r["name"]: r["problem"] for r in found["requirements"]}
    assert (needs["long"], needs["long-legacy"]) == (None, "environment is not there")
    flicker = ("--suite", "vbench-long", "--dimensions", "temporal_flickering", "--long-python", python)
    assert m4v("evaluate", "run", "--check", *flicker)[0] == 0


def test_check_of_vbench_2_tells_its_own_environment_and_weights(m4v: M4v, tmp_path: Path) -> None:
    python = str(fake_environment(tmp_path / "env", "vbench2"))
    check = ("evaluate", "run", "--check", "--suite", "vbench2", "--vbench2-python", python)
    code, out, _ = m4v(*check, "--dimensions", "diversity,human_interaction", "--cache-dir", str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 10
    assert [d["environment"] for d in found["dimensions"]] == ["vbench2", "vbench2"]
    needs = {r["name"]: r["place"] for r in found["requirements"]}
    assert needs["qwen_judge"] == str(tmp_path / "Qwen" / "Qwen2.5-7B-Instruct")
    assert set(needs) == {"vbench2", "vgg19", "llava_video", "siglip", "qwen_judge"}
    told = m4v(*check)[1]
    assert "diversity\tvbench2\tno\tvgg19 is not there" in told
    assert "mechanics\tvbench2\tno\truns on a GPU alone" in told
    assert "runs on a GPU alone" not in m4v(*check, "--device", "cuda")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run",), "no samples are named"),
        (("run", "abc", "--dimensions", "beauty"), "VBench has no dimension 'beauty'"),
        (("run", "abc"), "no such artifact"),
        (("run", "abc", "--inside-clips"), "VBench has no clips"),
        (("run", "abc", "--suite", "vbench2", "--dimensions", "scene"), "VBench-2.0 has no dimension 'scene'"),
        (("run", "abc", "--suite", "vbench2", "--static-filter"), "leave --static-filter"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(m4v: M4v, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = m4v("evaluate", *arguments)
    assert (code, out) == (10, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_recipe_of_vbench_2_samples_its_prompts() -> None:
    overrides = ["evaluation.vbench={suite: vbench2, vbench2_python: /x/python, dimensions: [diversity]}"]
    nodes = {n.id: n for n in build_graph(load_recipe("micro", overrides))}
    assert (len(nodes["generate.vbench"].config.prompts), nodes["generate.vbench"].config.samples_per_prompt) == (
        1012,
        3,
    )  # type: ignore[attr-defined]
    assert nodes["vbench"].locations == {"vbench2_python": "/x/python"}
    assert nodes["vbench"].config.wanted == ("diversity",)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "more", "words"),
    [
        (
            "{suite: vbench2}",
            (),
            r"17 run on a GPU alone, .*stages\.vbench\.device to cuda, or dimensions to available",
        ),
        ("{suite: vbench2, dimensions: [mechanics]}", (), "1 run on a GPU alone, mechanics among them"),
        (
            "{suite: vbench2}",
            ("profiles.local.stages.vbench={device: cuda}", "generate.frames=17", "generate.fps=24"),
            r"gives shorter ones 1\.0; leave instance_preservation out",
        ),
        ("{suite: vbench2, prompts: vbench, dimensions: [diversity]}", (), "no prompt is one of VBench-2.0's for div"),
    ],
)
def test_a_recipe_of_vbench_2_that_cannot_be_measured_is_refused_before_training(
    entry: str, more: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe("micro", [f"evaluation.vbench={entry}", *more])
    assert load_recipe("micro", ["evaluation.vbench={suite: vbench2, dimensions: available}"]).evaluation.vbench


def test_a_recipe_names_suite_and_interpreter() -> None:
    overrides = ["evaluation.vbench.prompts=vbench-fast50", "evaluation.vbench.dimensions=available"]
    nodes = {
        n.id: n for n in build_graph(load_recipe("micro", [*overrides, "evaluation.vbench.core_python=/x/python"]))
    }
    assert nodes["vbench"].inputs == {"samples": ("generate.vbench", "samples")}
    assert nodes["vbench"].locations == {"core_python": "/x/python"}
    assert "core_python" not in nodes["vbench"].config.canonical()
    made = nodes["generate.vbench"].config.canonical()
    assert (len(made["prompts"]), made["samples_per_prompt"]) == (50, 5)
    assert "vbench" not in {n.id for n in build_graph(load_recipe("micro"))}


def test_a_recipe_with_the_static_filter_samples_enough_of_each_prompt() -> None:
    filtered = ["evaluation.vbench.static_filter=true", "evaluation.vbench.dimensions=[temporal_flickering]"]
    with pytest.raises(ConfigError, match="static_filter chooses among 25 videos of a prompt; 'In a still frame"):
        load_recipe("micro", [*filtered, "evaluation.vbench.prompts=vbench"])
    enough = "evaluation.vbench.prompts={suite: vbench, samples: {temporal_flickering: 25}}"
    entry = load_recipe("micro", [*filtered, enough]).evaluation.vbench
    assert entry is not None
    assert entry.config.static_filter


def test_a_recipe_with_vbench_long_needs_long_videos_and_keeps_its_places_out_of_keys() -> None:
    long = ["evaluation.vbench.suite=vbench-long", "evaluation.vbench.long_python=/x/python"]
    with pytest.raises(ConfigError, match=r"VBench-Long is for videos of 5 s and more.*set generate\.frames and fps"):
        load_recipe("micro", long)
    nodes = {
        n.id: n
        for n in build_graph(
            load_recipe("m4v-768p", ["evaluation.vbench={suite: vbench-long, long_python: /x/python}"])
        )
    }
    assert nodes["vbench"].locations == {"long_python": "/x/python"}
    assert nodes["vbench"].config.canonical()["suite"] == "vbench-long"


@pytest.mark.deep
def test_samples_get_scores_with_lineage(m4v: M4v, micro_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    with Ledger.open(f"sqlite:///{micro_copy / 'ledger.db'}") as ledger:
        samples = ledger.artifacts(kind=ArtifactKind.SAMPLES, limit=None)[0].artifact_id
    python = str(fake_environment(micro_copy / "core"))
    words = ("evaluate", "run", samples, "--suite", "fast", "--dimensions", "temporal_flickering", "--json")
    code, out, err = m4v(*words, "--core-python", python)
    assert code == 0, err
    scores = json.loads(out)["scores"]
    again = json.loads(m4v(*words, "--core-python", python)[1])
    assert (again["node"]["status"], again["scores"]) == ("hit", scores)
    assert samples[:12] in m4v("lineage", "up", scores)[1]
