"""What VBench is given: every video counted, named as it wants, on every disk; figures over dimensions."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from eval.config import GenerateConfig
from eval.prompts import jobs, prompt_set_digest, video_name
from eval.records import Origin, SampleSet, SampleVideo
from eval.suites import DimensionResult
from eval.vbench import layout
from eval.vbench.aggregate import AVG4, AVG7, FAST_DIMENSIONS, fast_figures, standard_figures
from eval.vbench.config import VBenchConfig
from eval.vbench.constants import CUSTOM_DIMENSIONS, DIMENSIONS
from eval.vbench.inputs import expected_of, suite_inputs
from eval.vbench.layout import lay_out
from eval.vbench.totals import totals
from eval.vocabulary import Facts
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError, InputError

LANDSCAPES = (713, 734)  # `a fantasy landscape` and `A fantasy landscape`


def sample_set(prompts: object, samples: int = 5) -> SampleSet:
    config = parse(GenerateConfig, {"prompts": prompts, "frames": 9, "height": 64, "width": 64}, "recipe")
    counts = {number: p.samples or samples for number, p in config.by_number.items()}
    videos = tuple(
        SampleVideo(
            file=video_name(i, j), prompt=config.by_number[i].text, prompt_index=i, sample_index=j, seed=0,
            facts=Facts(), frames=9, fps=8, height=64, width=64, sha256="", scored_as=config.by_number[i].scored_as,
        )
        for i, j in jobs(config.prompts, samples)
    )  # fmt: skip
    return SampleSet(
        checkpoint="c", ema=True, sampler={}, codec={}, text_encoder={}, crf=12,
        prompt_set=prompt_set_digest(config.prompts), seed_rule="", base_seed=0, prompts=len(config.prompts),
        samples_per_prompt=samples, videos=videos, counts=counts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> SampleSet:
    return sample_set("vbench-longer")


def test_every_dimension_gets_five_videos_of_its_prompts(whole: SampleSet) -> None:
    found = suite_inputs(whole, "id", DIMENSIONS)
    assert found.prompt_set == "vbench-longer"
    assert not found.partial
    assert {name: len(videos) for name, videos in found.by_dimension.items()} == {n: expected_of(n) for n in DIMENSIONS}
    first = found.by_dimension["object_class"][0]
    assert first.name == f"{first.prompt}-0.mp4"
    assert len(first.prompt) < 50, "named and scored by the short prompt"


def test_missing_videos_are_refused_or_marked(whole: SampleSet) -> None:
    short = whole.model_copy(update={"videos": tuple(v for v in whole.videos if v.prompt_index != 0)[:-1]})
    with pytest.raises(DataIntegrityError, match=r"5 of 375 videos of temporal_flickering.*a stop sign-0\.mp4"):
        suite_inputs(short, "id", ["temporal_flickering"])
    assert suite_inputs(short, "id", ["temporal_flickering"], partial=True).partial
    assert not suite_inputs(short, "id", ["color"]).partial
    with pytest.raises(DataIntegrityError, match="no video is of a prompt"):
        suite_inputs(sample_set(["one"]), "id", ["color"], partial=True)
    origin = Origin(system="other", source="a paper", licence="theirs", video_codec="h264 yuv420p")
    with pytest.raises(DataIntegrityError, match="import the missing videos too, or judge what is there"):
        suite_inputs(short.model_copy(update={"origin": origin}), "id", ["temporal_flickering"])


def test_static_filter_gets_what_there_is_beyond_five() -> None:
    prompts = {"suite": "vbench", "dimensions": ["temporal_flickering"], "samples": {"temporal_flickering": 25}}
    found = suite_inputs(sample_set(prompts), "id", ["temporal_flickering"])
    assert len(found.by_dimension["temporal_flickering"]) == 75 * 25
    assert found.prompt_set == "vbench"


def test_custom_mode_takes_prompts_of_any_kind() -> None:
    own = sample_set(["one", "two"], samples=1)
    found = suite_inputs(own, "id", CUSTOM_DIMENSIONS, "custom")
    assert found.prompt_set == "own"
    assert [v.name for v in found.by_dimension["imaging_quality"]] == ["0000-0000.mp4", "0001-0000.mp4"]
    assert [v.name for v in found.by_dimension["human_action"]] == ["one-0.mp4", "two-0.mp4"]
    with pytest.raises(ConfigError, match=r"more than a prompt's words.*: 'scene'"):
        suite_inputs(own, "id", ["scene"], "custom")
    with pytest.raises(ConfigError, match="no such dimension"):
        suite_inputs(own, "id", ["colour"], "custom")


def test_custom_mode_is_refused_its_impossible_dimensions_before_anything_is_sampled() -> None:
    with pytest.raises(ValidationError, match=r"cannot measure object_class, .*scene.*say dimensions: \[subject"):
        VBenchConfig(mode="custom")
    with pytest.raises(ValidationError, match="custom cannot measure scene, which read"):
        VBenchConfig(mode="custom", dimensions=("scene", "imaging_quality"))
    assert VBenchConfig(mode="custom", dimensions="available").wanted == CUSTOM_DIMENSIONS
    assert VBenchConfig(mode="custom", dimensions=CUSTOM_DIMENSIONS).wanted == CUSTOM_DIMENSIONS


def test_links_have_the_names_that_vbench_wants(whole: SampleSet, tmp_path: Path, monkeypatch) -> None:
    videos = [
        v for v in suite_inputs(whole, "id", ["overall_consistency"]).by_dimension["overall_consistency"]
        if v.prompt_index in LANDSCAPES
    ]  # fmt: skip
    source = tmp_path / "samples"
    for video in videos:
        (source / video.file).parent.mkdir(parents=True, exist_ok=True)
        (source / video.file).write_text(video.file)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/stray.txt").touch()
    for folds in (False, True):
        monkeypatch.setattr(layout, "_folds_case", lambda _, answer=folds: answer)
        places = lay_out(videos, source, tmp_path / "links")
        assert {p.name for p in places.values()} == {v.name for v in videos}
        assert all(place.read_text() == file for file, place in places.items())
        folders = {p.parent.name for p in places.values()}
        assert folders == ({"links", "links-2"} if folds else {"links"})
        for name in folders:
            inside = [p.name.casefold() for p in (tmp_path / name).iterdir()]
            assert len(inside) == (5 if folds else 10)
            assert len(set(inside)) == 5
    monkeypatch.undo()
    assert lay_out(videos[:1], source, tmp_path / "links")
    assert [p.name for p in (tmp_path / "links").iterdir()] == [videos[0].name]


def test_names_and_videos_that_cannot_be(whole: SampleSet, tmp_path: Path) -> None:
    video = suite_inputs(whole, "id", ["color"]).by_dimension["color"][0]
    with pytest.raises(DataIntegrityError, match="video is not there"):
        lay_out([video], tmp_path, tmp_path / "links")
    for name in ("a/b-0.mp4", "ä" * 128 + "-0.mp4"):
        with pytest.raises(InputError, match="no file can have"):
            lay_out([video.model_copy(update={"name": name})], tmp_path, tmp_path / "links")
    (tmp_path / "videos").mkdir()
    (tmp_path / video.file).touch()
    with pytest.raises(DataIntegrityError, match="two videos have one name"):
        lay_out([video, video], tmp_path, tmp_path / "links")


def results(scores: dict[str, float]) -> list[DimensionResult]:
    found = [DimensionResult(dimension=n, status="measured", expected=1, score=s) for n, s in scores.items()]
    return [*found, DimensionResult(dimension="scene", status="failed", expected=1, reason="killed")]


def test_fast_averages_are_those_of_the_paper() -> None:
    """Table 3 of the paper: the first and the fourth row with their printed averages."""
    for row, printed in (((93.28, 46.60, 63.16, 19.77), 55.70), ((93.53, 49.82, 63.79, 21.26), 57.10)):
        found = fast_figures(results(dict(zip(AVG4, [v / 100 for v in row], strict=True))))
        assert found.figures["avg4"] == pytest.approx(printed / 100, abs=5.1e-5)
        assert found.figures["avg7"] is None
        assert set(found.missing["avg7"]) == set(AVG7) - set(AVG4)
    whole = fast_figures(results({name: (n + 1) / 10 for n, name in enumerate(FAST_DIMENSIONS)}))
    assert whole.figures == pytest.approx({"avg4": (0.1 + 0.5 + 0.6 + 0.7) / 4, "avg7": 0.4})
    assert whole.missing == {}


def test_standard_figures_are_absent_without_a_dimension() -> None:
    scores = {n: 0.5 for n in DIMENSIONS if n != "scene"}
    found = standard_figures(results(scores))
    assert found.figures == {"total": None, "quality": totals(scores, "fraction").quality, "semantic": None}
    assert found.missing == {"total": ("scene",), "semantic": ("scene",)}
    assert standard_figures(results({})).missing["total"] == DIMENSIONS
