"""VBench-Long: its rules as published, which videos it takes, what makes its results others than VBench's."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from pydantic import ValidationError

from eval.prompts import prompt_set_digest
from eval.records import SampleSet, SampleVideo
from eval.suites import Suite
from eval.vbench.config import Places, Variant, VBenchConfig
from eval.vbench.constants import DIMENSIONS
from eval.vbench.environment import SPECS, environment_of
from eval.vbench.inputs import suite_inputs
from eval.vbench.long import LONG_CUSTOM_DIMENSIONS, clip_count, clip_seconds, rules
from eval.vbench.long_suite import VBenchLongSuite, open_suite
from eval.vbench.prompt_suite import prompts_of, suite_prompts
from eval.vbench.suite import VBenchSuite
from eval.vbench.weights import needs
from eval.vocabulary import Facts
from m4v.core.errors import ConfigError, DataIntegrityError, InputError


def samples(*dimensions: str, count: int = 5, frames: int = 121, fps: float = 24.0) -> SampleSet:
    prompts = [p for p in suite_prompts() if set(p.dimensions) & set(dimensions)]
    videos = tuple(
        SampleVideo(
            file=f"videos/{p.number:04d}-{j:04d}.mp4", prompt=p.prompt, prompt_index=p.number, sample_index=j, seed=0,
            facts=Facts(), frames=frames, fps=fps, height=64, width=64, sha256="0" * 64,
        )
        for p in prompts for j in range(count)
    )  # fmt: skip
    return SampleSet(
        checkpoint="c" * 64, ema=True, sampler={}, codec={}, text_encoder={}, crf=12, seed_rule="", base_seed=0,
        prompt_set=prompt_set_digest([p.prompt for p in prompts]), prompts=len(prompts), samples_per_prompt=count,
        videos=videos, counts={p.number: count for p in prompts},
    )  # fmt: skip


def test_the_figures_are_those_of_the_published_files() -> None:
    """Written out again as upstream has them, they have its files' digests."""
    files, known = rules().files, rules().clip_to_clip
    for dimension, name, end in (
        ("subject_consistency", "subject_mapping_table.yaml", ""),
        ("background_consistency", "background_mapping_table.yaml", "\n"),
    ):  # fmt: skip
        text = "\n".join(f"{key}: {value}" for key, value in known[dimension].table().items()) + end
        assert hashlib.sha256(text.encode()).hexdigest() == files[name].sha256
        assert known[dimension].in_clip_weight + known[dimension].clip_to_clip_weight == 1.0
    assert set(rules().clip_seconds) == set(DIMENSIONS)


@pytest.mark.parametrize(
    ("frames", "fps", "seconds", "clips"),
    [(241, 24, 2, 6), (241, 24, 10, 2), (240, 24, 2, 5), (121, 24, 2, 3), (121, 24, 10, 1), (40, 8, 2, 3)],
)
def test_a_video_is_cut_into_whole_clips_and_one_of_the_rest(frames: int, fps: int, seconds: int, clips: int) -> None:
    assert clip_count(frames, fps, seconds) == clips


def test_a_prompt_s_clips_have_the_longest_length_that_any_of_its_dimensions_wants() -> None:
    for dimension, seconds in (
        ("overall_consistency", 10),
        ("imaging_quality", 10),
        ("human_action", 10),
        ("scene", 2),
    ):
        assert {clip_seconds(p.prompt) for p in prompts_of(dimension)} >= {seconds}
    assert clip_seconds("a prompt of one's own", custom=True) == 2
    assert not any("_" in p.prompt for p in suite_prompts()), "VBench-Long ends a video's name at an underscore"


def test_videos_below_five_seconds_or_of_broken_rates_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"5 s and more: 119 frames at 24 a second are 4\.96 s.*--suite vbench"):
        suite_inputs(samples("color", frames=119), "id", ["color"], suite="vbench-long")
    with pytest.raises(InputError, match=r"would take 29\.97 for 29.*0000\.mp4"):
        suite_inputs(samples("color", frames=300, fps=29.97), "id", ["color"], suite="vbench-long")
    found = suite_inputs(samples("color"), "id", ["color"], suite="vbench-long")
    assert len(found.by_dimension["color"]) == 85 * 5
    assert found.by_dimension["color"][0].name == f"{prompts_of('color')[0].prompt}-0.mp4"


def test_its_filter_chooses_among_the_clips_of_five_videos() -> None:
    whole = samples("temporal_flickering")
    options: Any = {"static_filter": True, "suite": "vbench-long"}
    assert len(suite_inputs(whole, "id", ["temporal_flickering"], **options).by_dimension["temporal_flickering"]) == 375
    with pytest.raises(DataIntegrityError, match="videos of temporal_flickering are missing"):
        suite_inputs(samples("temporal_flickering", count=4), "id", ["temporal_flickering"], **options)
    with pytest.raises(DataIntegrityError, match="1500 of 1875"):
        suite_inputs(whole, "id", ["temporal_flickering"], static_filter=True)


def test_videos_of_one_s_own_are_measured_in_the_six_published_dimensions() -> None:
    assert len(LONG_CUSTOM_DIMENSIONS) == 6
    found = suite_inputs(samples("color"), "id", LONG_CUSTOM_DIMENSIONS, "custom", suite="vbench-long")
    assert all(len(videos) == 85 * 5 for videos in found.by_dimension.values())
    with pytest.raises(ConfigError, match="use mode standard, or of subject_consistency"):
        suite_inputs(samples("color"), "id", ["overall_consistency"], "custom", suite="vbench-long")
    with pytest.raises(ValidationError, match="mode custom cannot measure temporal_flickering"):
        VBenchConfig(suite="vbench-long", mode="custom", dimensions=("temporal_flickering",))


def test_the_config_names_the_suite_only_where_it_is_another() -> None:
    assert {"suite", "clip_to_clip"}.isdisjoint(VBenchConfig().canonical())
    long = VBenchConfig(suite="vbench-long", clip_to_clip=False)
    assert (long.key_config()["suite"], long.key_config()["clip_to_clip"]) == ("vbench-long", False)
    with pytest.raises(ValidationError, match="VBench has no clips"):
        VBenchConfig(clip_to_clip=False)


def test_it_has_environments_and_weights_of_its_own() -> None:
    assert [environment_of(d, "vbench-long") for d in ("scene", "imaging_quality")] == ["long-legacy", "long"]
    for name, base in (("long", "core"), ("long-legacy", "legacy")):
        lines = SPECS[name].lock.decode().splitlines()  # type: ignore[index]
        pins = [line.partition("==")[0].lower() for line in lines if "==" in line and not line.startswith("#")]
        assert SPECS[name].lock.startswith(SPECS[base].lock)  # type: ignore[index]
        assert {"scenedetect", "moviepy", "av"} <= set(pins)
        assert len(set(pins)) == len(pins), "nothing is pinned twice"
    long, inside = Variant("vbench-long"), Variant("vbench-long", clip_to_clip=False)
    assert needs("subject_consistency", long) == ("dino_repo", "dino", "dinov2_repo", "dinov2")
    assert needs("subject_consistency", inside) == needs("subject_consistency")
    assert needs("scene", long) == needs("scene")


def test_the_suite_is_chosen_by_the_config() -> None:
    places = Places.of({})
    long = open_suite(places, VBenchConfig(suite="vbench-long"))
    assert isinstance(long, Suite)
    assert (type(long), long.name) == (VBenchLongSuite, "vbench-long")
    short = open_suite(places, VBenchConfig())
    assert (type(short), short.name) == (VBenchSuite, "vbench")
