"""The stage as VBench-Long on a real child process: clips counted and joined to videos, results that stand apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_interpreter import fake_environment
from vbench_samples import prompts_for, sample_artifact, vbench_context

from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.intervals import affine
from eval.vbench.long import rules
from eval.vbench.weights import catalogue
from m4v.core.artifacts import Artifact
from m4v.core.errors import InputError
from m4v.core.stage import StageContext

FLICKER, SMOOTH, SUBJECT = "temporal_flickering", "motion_smoothness", "subject_consistency"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two videos a prompt, 41 frames at 8 a second: three clips of 2 s."""
    folder = tmp_path_factory.mktemp("long") / "samples"
    return sample_artifact(folder, prompts_for(FLICKER, SUBJECT), samples=2, size=64, frames=41)


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Something at every weight file's place."""
    roots = dict.fromkeys(("VBENCH_CACHE_DIR", "VBENCH2_CACHE_DIR"), tmp_path / "cache")
    roots |= {"TORCH_HOME": tmp_path / "torch", "HF_HOME": tmp_path / "hf"}
    for row in catalogue().files.values():
        place = roots[row.variable] / row.below
        if row.is_folder:
            parts = ("hubconf.py", "utils.py", "vision_transformer.py", "dinov2/hub/backbones.py",
                     "dinov2/models/vision_transformer.py", "adapter_config.json")  # fmt: skip
            for part in parts:
                (place / part).parent.mkdir(parents=True, exist_ok=True)
                (place / part).write_text(part)
        elif " " not in row.place:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(row.url)
    return {
        "cache_dir": str(tmp_path / "cache"),
        "torch_home": str(tmp_path / "torch"),
        "hf_home": str(tmp_path / "hf"),
    }


def evaluated(
    root: Path, samples: Artifact, places: dict[str, str], python: Path, **config: Any
) -> tuple[StageContext, ScoreSet]:
    options = {"partial": True, "published_weights": False, "failures": "record", "suite": "vbench-long", **config}
    locations = {**places, "long_python": str(python), "core_python": str(python)}
    context = vbench_context(root, samples, locations, **options)
    run(context)
    return context, ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


def test_a_video_s_value_is_the_mean_of_its_clips_and_the_result_has_an_identity_of_its_own(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    python = fake_environment(tmp_path / "env", "long")
    context, found = evaluated(tmp_path / "long", samples, places, python, dimensions=(SMOOTH, SUBJECT))
    # The fake's clips are worth 1/6 to 6/6: two videos of three each.
    values = [v.metrics[f"vbench-long.{SMOOTH}"] for v in found.per_video]
    assert [value for value in values if value is not None] == pytest.approx([2 / 6, 5 / 6], abs=1e-6)
    assert found.metrics[f"vbench-long.{SMOOTH}"].mean == pytest.approx(3.5 / 6, abs=1e-6)
    assert found.metrics[f"vbench-long.{SUBJECT}"].mean == pytest.approx(3.5 / 6, abs=1e-6)
    suite = found.identity.suite
    assert suite is not None
    assert (suite.name, suite.options["clip_to_clip"]) == ("vbench-long", True)
    assert set(suite.environments) == {"worker", "long_worker", "long"}
    assert {"dinov2", "dinov2_repo", "dino"} <= set(suite.weights)
    assert found.figures is not None
    assert set(found.figures.figures) == {"vbench-long.total", "vbench-long.quality", "vbench-long.semantic"}
    assert set(found.figures.figures.values()) == {None}, "of two dimensions there is no total"
    assert not list((context.scratch / "vbench").glob("*/long")), "clips go when the dimension has ended"
    assert json.loads(context.output("scores").joinpath(SCORES).read_text())["identity"]["suite"]["name"] == suite.name

    _, inside = evaluated(
        tmp_path / "inside", samples, places, python, dimensions=(SMOOTH, SUBJECT), clip_to_clip=False
    )
    assert "suite" in found.identity.differences(inside.identity)
    short = fake_environment(tmp_path / "core")
    _, plain = evaluated(tmp_path / "short", samples, places, short, dimensions=(SMOOTH, SUBJECT), suite="vbench")
    assert {"suite", "metrics"} <= set(found.identity.differences(plain.identity))
    assert set(plain.metrics).isdisjoint(found.metrics)


def test_upstream_s_program_is_asked_what_its_published_protocol_asks(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    def asked(name: str, **config: Any) -> dict[str, Any]:
        python = fake_environment(tmp_path / name / "env", "long")
        evaluated(tmp_path / name, samples, places, python, dimensions=(SUBJECT,), **config)
        package = tmp_path / name / "env" / "packages" / "vbench2_beta_long"
        found: dict[str, Any] = json.loads((package / f"asked-{SUBJECT}.json").read_text())
        return found

    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    on, off = asked("on"), asked("off", clip_to_clip=False)
    assert (on["dev_flag"], on["sb_clip2clip_feat_extractor"]) == (True, "dinov2")
    assert on["slow_fast_eval_config"] == "w_inclip_sb: 0.7\nw_clip2clip_sb: 0.3\n"
    lines = on["sb_mapping_file_path"].splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("0.0: 0.0", "1.0: 1.0", 101)
    assert (off["dev_flag"], off["sb_clip2clip_feat_extractor"]) == (False, "dino")
    assert (off["w_inclip"], off["w_clip2clip"], off["static_filter_flag"]) == (1.0, 0.0, False)


@pytest.mark.parametrize(
    ("word", "clips", "reason"),
    [
        ("drop", 3, "VBench-Long gave 2 of 3 clips of videos/"),
        ("strange", 3, "VBench-Long gave a value of a video that it was not given: elsewhere.mp4"),
        ("last frame", 3, "VBench-Long's own score is 1.0, and 0.583333 is what its list of clips gives"),
        ("nan", 3, "failed: VBench gave nan, which is no number [number]"),
        ("kill", 3, "killed: was ended by SIGKILL"),
        ("", 4, "was cut into 4 clips of 2 s, and its frames and rate make 3"),
    ],
)
def test_clips_that_are_missing_or_too_many_are_no_measurement(
    tmp_path: Path, samples: Artifact, places: dict[str, str], word: str, clips: int, reason: str
) -> None:
    python = fake_environment(tmp_path / "env", "long", {"2": clips, "10": 1}, **{SMOOTH: word})
    _, found = evaluated(tmp_path / "run", samples, places, python, dimensions=(SMOOTH,))
    assert found.figures is not None
    assert reason in found.figures.failed[f"vbench-long.{SMOOTH}"]


def test_the_static_filter_keeps_five_near_static_clips_a_prompt(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    python = fake_environment(tmp_path / "env", "long")
    raft = Path(places["cache_dir"]) / catalogue().files["raft"].below
    raft.write_text("0_000 0_002 1_001 1_000")
    context, found = evaluated(tmp_path / "run", samples, places, python, dimensions=(FLICKER,), static_filter=True)
    # Four clips are worth 1/4 to 4/4 in their order; the score is of videos, not of clips.
    values = [v.metrics[f"vbench-long.{FLICKER}"] for v in found.per_video]
    assert values == pytest.approx([1.5 / 4, 3.5 / 4])
    assert found.metrics[f"vbench-long.{FLICKER}"].mean == pytest.approx(2.5 / 4)
    assert context.collected_metrics()["near_static_videos"] == 2
    raft.write_text("1_001")
    _, one = evaluated(tmp_path / "one", samples, places, python, dimensions=(FLICKER,), static_filter=True)
    assert [v.metrics[f"vbench-long.{FLICKER}"] for v in one.per_video] == [None, 1.0]


def test_what_is_missing_is_refused_before_any_video_is_read(
    tmp_path: Path, samples: Artifact, places: dict[str, str]
) -> None:
    dreamsim = Path(places["cache_dir"]) / "dreamsim_model" / "clip_vitb16_pretrain.pth.tar"
    dreamsim.unlink()
    python = fake_environment(tmp_path / "env", "long")
    wanted = ("background_consistency",)
    with pytest.raises(InputError, match=r"\(background_consistency\): dreamsim_clip is not there"):
        evaluated(tmp_path / "a", samples, places, python, dimensions=wanted)
    evaluated(tmp_path / "b", samples, places, python, dimensions=(SMOOTH,), clip_to_clip=False)
    with pytest.raises(InputError, match="long environment is not there"):
        evaluated(tmp_path / "c", samples, places, tmp_path / "none", dimensions=(SMOOTH,))


def test_its_totals_are_affine_as_vbench_s() -> None:
    start, slopes = affine("total", tuple(rules().clip_seconds))
    assert start < 0 < min(slopes.values())
