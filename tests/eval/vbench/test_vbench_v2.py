"""VBench-2.0: its prompts, names and counts as published, the rule of its totals, what an answer must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eval.prompts import Prompt, jobs, prompt_set_digest, resolve_prompts, set_name
from eval.records import SampleSet, SampleVideo
from eval.suites import DimensionResult, Suite, SuiteVideo
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.environment import SPECS
from eval.vbench.intervals import affine
from eval.vbench.long_suite import open_suite
from eval.vbench.reader import Unusable
from eval.vbench.setup import lay_checkout
from eval.vbench.v2 import figures
from eval.vbench.v2_prompts import (
    V2_DIMENSIONS,
    entries,
    expected_of,
    prompts,
    prompts_of,
    rules,
    samples_of,
    video_name,
)
from eval.vbench.v2_reader import read_v2_answer
from eval.vbench.v2_suite import VBench2Suite, v2_inputs
from eval.vbench.weights import candidates, needs
from eval.vocabulary import Facts
from m4v.core.errors import ConfigError, DataIntegrityError, InputError

SPATIAL, INSTANCE = "dynamic_spatial_relationship", "instance_preservation"


def samples(*dimensions: str, short: int = 0, frames: int = 121) -> SampleSet:
    """All videos of the dimensions' prompts but the last `short`."""
    videos = [
        SampleVideo(
            file=f"videos/{p.number:04d}-{j:04d}.mp4", prompt=p.prompt, prompt_index=p.number, sample_index=j, seed=0,
            facts=Facts(), frames=frames, fps=24, height=64, width=64, sha256="0" * 64,
        )
        for p in prompts() if set(p.dimensions) & set(dimensions) for j in range(p.samples)
    ]  # fmt: skip
    return SampleSet(
        checkpoint="c" * 64, ema=True, sampler={}, codec={}, text_encoder={}, crf=12, seed_rule="", base_seed=0,
        prompt_set="p", prompts=1, samples_per_prompt=3, videos=tuple(videos[: len(videos) - short]), counts={},
    )  # fmt: skip


def test_prompts_and_counts_are_the_published_ones() -> None:
    assert (len(entries()), len(prompts()), len(V2_DIMENSIONS)) == (1230, 1012, 18)
    made = [Prompt.model_validate(p) for p in resolve_prompts("vbench2")]  # type: ignore[attr-defined]
    assert len(jobs(made, 3)) == 3 * 1002 + 20 * 10 == 3206
    assert set_name(prompt_set_digest(made)) == "vbench2"
    assert [len(prompts_of(d)) for d in ("diversity", SPATIAL, "human_anatomy")] == [10, 68, 120]
    assert (expected_of("diversity"), expected_of("human_anatomy"), samples_of("mechanics")) == (200, 360, 3)
    part = resolve_prompts({"suite": "vbench2", "dimensions": ["material"], "samples": {"material": 1}})
    assert len(part) == 50  # type: ignore[arg-type]
    assert {p["samples"] for p in part} == {1}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"VBench-2\.0 has no dimension 'scene'"):
        resolve_prompts({"suite": "vbench2", "dimensions": ["scene"]})


def test_names_are_upstream_s_and_no_two_prompts_share_one() -> None:
    names = [video_name(p.prompt, j) for p in prompts() for j in range(p.samples)]
    assert names[0] == "Garden, zoom in.-0.mp4"
    assert len({name.casefold() for name in names}) == len(names) == 3206, "not even where a disk folds case"
    assert max(len(name.encode()) for name in names) < 255
    assert not any("/" in name for name in names)
    assert max(len(p.prompt) for p in prompts()) == 1120


def test_three_videos_a_prompt_are_read_of_diversity_s_twenty() -> None:
    found = v2_inputs(samples("diversity"), "id", ["diversity"])
    assert (len(found.by_dimension["diversity"]), found.prompt_set, found.mode) == (200, "vbench2", "standard")
    whole = v2_inputs(samples("mechanics"), "id", ["mechanics"])
    shared = {v.prompt for v in whole.by_dimension["mechanics"]} & {p.prompt for p in prompts_of("diversity")}
    assert len(whole.by_dimension["mechanics"]) == 57 * 3
    assert len(shared) == 1
    with pytest.raises(DataIntegrityError, match=r"1 of 171 videos of mechanics are missing.*prompts: vbench2"):
        v2_inputs(samples("mechanics", short=1), "id", ["mechanics"])
    assert v2_inputs(samples("mechanics", short=1), "id", ["mechanics"], partial=True).partial
    with pytest.raises(ConfigError, match=r"VBench-2\.0 has no such dimension"):
        v2_inputs(samples("mechanics"), "id", ["scene"])
    with pytest.raises(DataIntegrityError, match="no video is of a prompt"):
        v2_inputs(samples("mechanics"), "id", ["complex_landscape"], partial=True)


def test_videos_that_upstream_would_call_perfect_unseen_are_refused() -> None:
    v2_inputs(samples(INSTANCE, frames=48), "id", [INSTANCE])
    with pytest.raises(InputError, match=r"gives shorter ones 1\.0.*47 frames at 24 a second"):
        v2_inputs(samples(INSTANCE, frames=47), "id", [INSTANCE])
    suite = open_suite(Places.of({}), VBenchConfig(suite="vbench2"))
    with pytest.raises(ConfigError, match=r"1 dimensions of VBench-2\.0 run on a GPU alone.*--dimensions diversity"):
        suite.inputs(samples(INSTANCE), "id", [INSTANCE])


def results(scores: dict[str, float]) -> list[DimensionResult]:
    return [DimensionResult(dimension=d, status="measured", expected=1, score=v) for d, v in scores.items()]


def test_totals_follow_the_published_rule() -> None:
    assert {g: len(names) for g, names in rules().groups.items()} == {
        "creativity": 2, "commonsense": 2, "controllability": 7, "human_fidelity": 3, "physics": 4
    }  # fmt: skip
    scores = {d: n / 20 for n, d in enumerate(V2_DIMENSIONS)}
    found = figures(results(scores)).figures
    means = [sum(scores[d] for d in names) / len(names) for names in rules().groups.values()]
    assert list(found.values())[1:] == pytest.approx(means)
    assert found["total"] == pytest.approx(0.2 * sum(means))
    start, slopes = affine("total", V2_DIMENSIONS, "vbench2")
    assert start == pytest.approx(0)
    assert slopes["diversity"] == pytest.approx(1 / 10), "a dimension weighs by how many its group has"
    assert slopes["camera_motion"] == pytest.approx(1 / 35)


@given(st.sampled_from(V2_DIMENSIONS))
def test_a_total_lacks_a_value_rather_than_a_dimension(gone: str) -> None:
    found = figures(results({d: 0.5 for d in V2_DIMENSIONS if d != gone}))
    group = next(g for g, names in rules().groups.items() if gone in names)
    assert {g for g, value in found.figures.items() if value is None} == {"total", group}
    assert found.missing == {"total": (gone,), group: (gone,)}


def videos(dimension: str, count: int) -> list[SuiteVideo]:
    prompt = prompts_of(dimension)[0].prompt
    return [SuiteVideo(file=f"{n}.mp4", name=f"{n}", prompt=prompt, prompt_index=0, sample_index=n)
            for n in range(count)]  # fmt: skip


def read(dimension: str, rows: list[Any], score: float, times: int = 1, **more: Any) -> DimensionResult:
    mine = videos(dimension, 3)
    paths = {v.file: f"/x/{v.file}" for v in mine}
    answer = {"score": score, "videos": [[f"/x/{n}.mp4", value] for n, value in rows]}
    return read_v2_answer(answer, dimension, mine, paths, {mine[0].prompt: times}, **more)


def test_an_answer_is_counted_and_its_score_recomputed() -> None:
    found = read("mechanics", [(0, 1), (1, -1), (2, 0)], 0.5)
    assert ([r.value for r in found.rows], found.score, found.videos) == ([1.0, None, 0.0], 0.5, 2)
    twice = read(SPATIAL, [(0, 1), (1, 1), (2, 0), (0, 0), (1, 1), (2, 0)], 0.5, times=2)
    assert [r.value for r in twice.rows] == [0.5, 1.0, 0.0], "a prompt that stands twice is judged twice"
    one = read("diversity", [(0, 0.25)], 0.25)
    assert ([r.value for r in one.rows], one.expected) == ([0.25, None, None], 3)


@pytest.mark.parametrize(
    ("dimension", "rows", "score", "why"),
    [
        ("mechanics", [(0, 1), (1, 1)], 1.0, "gave 0 of 1 judgements of 2.mp4"),
        ("mechanics", [(0, 1), (0, 1), (1, 1), (2, 1)], 1.0, "gave 2 of 1 judgements of 0.mp4"),
        ("diversity", [(0, 0.1), (1, 0.2)], 0.15, "gave 1 of 0 judgements of 1.mp4"),
        ("mechanics", [(0, 1), (1, 1), (7, 1)], 1.0, "of a video that it was not given: /x/7.mp4"),
        ("mechanics", [(0, -1), (1, -1), (2, -1)], 0.0, "no video counts"),
        ("composition", [(0, -1), (1, 1), (2, 1)], 1.0, "lies in 0 to 1, VBench-2.0 gave -1.0"),
        ("material", [(0, 50), (1, 1), (2, 1)], 1.0, "lies in 0 to 1, VBench-2.0 gave 50.0"),
        ("mechanics", [(0, 1), (1, 0), (2, 0)], 0.5, "own score is 0.5, and 0.333333 is what its list gives"),
        ("mechanics", [(0, 0), (1, 0), (2, 0)], 0.0, "the score is 0.0"),
        ("mechanics", [(0, "yes"), (1, 0), (2, 0)], 0.0, "is a number, VBench gave 'yes'"),
    ],
)
def test_an_answer_that_is_no_measurement_is_refused(dimension: str, rows: list[Any], score: float, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        read(dimension, rows, score)


def test_the_config_knows_the_suite_s_dimensions_and_what_it_has_not() -> None:
    config = VBenchConfig(suite="vbench2", dimensions=("material", "diversity"))
    assert config.wanted == ("diversity", "material")
    assert VBenchConfig(suite="vbench2").wanted == V2_DIMENSIONS
    for wrong in ({"dimensions": ("scene",)}, {"mode": "custom"}, {"static_filter": True}, {"clip_to_clip": False}):
        with pytest.raises(ValidationError, match=r"VBench-2\.0"):
            VBenchConfig.model_validate({"suite": "vbench2", **wrong})
    suite = open_suite(Places.of({}), VBenchConfig(suite="vbench2"))
    assert isinstance(suite, Suite)
    assert (type(suite), suite.name, suite.dimensions) == (VBench2Suite, "vbench2", V2_DIMENSIONS)


def test_it_has_an_environment_and_weights_of_its_own(tmp_path: Path) -> None:
    spec = SPECS["vbench2"]
    assert (spec.torch, spec.pythons, len(spec.checkouts)) == ("2.5.1", ((3, 10), (3, 10)), 3)
    assert set(spec.elsewhere) < set(spec.dimensions)
    places = Places.of({"vbench2_cache_dir": str(tmp_path), "cache_dir": str(tmp_path / "vbench")})
    variant = VBenchConfig(suite="vbench2").variant
    assert needs("camera_motion", variant) == ("cotracker_repo", "cotracker")
    assert needs("human_interaction", variant) == ("llava_video", "siglip", "qwen_judge")
    assert candidates("qwen_judge", places) == [tmp_path / "Qwen" / "Qwen2.5-7B-Instruct"]
    assert candidates("raft_2", places)[1] == tmp_path / "vbench" / "raft_model" / "models" / "raft-things.pth"


def test_code_that_no_package_holds_is_laid_beside_the_packages_at_its_commit(tmp_path: Path) -> None:
    import subprocess

    source, environment = tmp_path / "source", tmp_path / "env"
    (source / "below" / "code_of_none").mkdir(parents=True)
    (source / "below" / "code_of_none" / "__init__.py").write_text("WORD = 7\n")
    (environment / "lib" / "python3.10" / "site-packages").mkdir(parents=True)
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    told = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    lay_checkout(environment, "code", f"file://{source}@{told.stdout.strip()}", "below")
    moved = environment.rename(tmp_path / "moved")
    line = next(moved.glob("lib/*/site-packages/*.pth"))
    assert (line.parent / line.read_text().strip() / "code_of_none" / "__init__.py").read_text() == "WORD = 7\n"
