"""The real VBench-Long, set up by our command, on little videos: what its own function cuts, the one dimension without
weights for real, the other nine on stand-in weights. Needs a package registry, some gigabytes, many minutes.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from vbench_samples import prompts_for, sample_artifact, vbench_context

from eval.metrics.clip import Clip
from eval.metrics.pixels import flicker
from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.child import LONG_WORKER, WORKER, run_worker
from eval.vbench.environment import SPECS
from eval.vbench.setup import set_up
from eval.vocabulary import Facts
from m4v.core.artifacts import Artifact
from m4v.core.stage import StageContext

pytestmark = [pytest.mark.deep, pytest.mark.timeout(5400)]
LONG = SPECS["long"].dimensions
FLICKER = "temporal_flickering"
STANDINS = Path(__file__).with_name("standin_weights.py")
FRAMES = 41  # at 8 a second: clips of frames 0-15, 16-31, and 25-40, the rest filled up


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment made by our command, and stand-ins for the weight files that it reads, DreamSim's apart."""
    root = tmp_path_factory.mktemp("real")
    made = set_up("long", root / "long")
    found = {
        "long_python": str(made.python), "cache_dir": str(root / "cache"), "torch_home": str(root / "torch"),
        "hf_home": str(root / "hf"),
    }  # fmt: skip
    environment = {**os.environ, "M4V_WORKER": str(WORKER), "VBENCH_CACHE_DIR": found["cache_dir"]}
    command = [found["long_python"], str(STANDINS), found["cache_dir"], found["torch_home"]]
    subprocess.run(command, env=environment, check=True, timeout=1800)
    return found


def read_with_opencv(path: Path) -> np.ndarray:
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    video.release()
    return np.stack(frames)


def scores_of(context: StageContext) -> ScoreSet:
    return ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


def samples_for(folder: Path, *dimensions: str) -> Artifact:
    return sample_artifact(folder, prompts_for(*dimensions), samples=1, size=128, frames=FRAMES)


def flicker_of(frames: np.ndarray) -> float:
    value = flicker(Clip(frames=frames, fps=8, prompt="", facts=Facts())).value
    assert value is not None
    return value


def test_it_cuts_a_video_as_we_count_and_measures_the_clips(tmp_path: Path, locations: dict[str, str]) -> None:
    video = tmp_path / "a dog-0.mp4"
    samples_for(tmp_path / "samples", FLICKER)
    video.symlink_to(next((tmp_path / "samples" / "videos").iterdir()))
    folder = tmp_path / "clips"
    request: dict[str, Any] = {
        "task": "evaluate", "dimension": FLICKER, "device": "cpu", "threads": 1, "picture": None,
        "entries": [{"prompt_en": "a dog", "dimension": [FLICKER], "video_list": [str(video)]}],
        "full_info": str(tmp_path / "full_info.json"),
        "clips": {"folder": str(folder), "videos": {str(video): {"seconds": 2, "clips": 3, "fps": 8}}},
    }  # fmt: skip
    folder.mkdir()
    python = Path(locations["long_python"])
    variables = {"VBENCH_CACHE_DIR": locations["cache_dir"], "TORCH_HOME": locations["torch_home"]}
    ended = run_worker(python, request, tmp_path / "run", variables, 900, worker=LONG_WORKER)
    assert ended.answer is not None, ended.reason
    assert ended.end == "answered"
    clips = sorted((folder / "split_clip" / "a dog-0").iterdir())
    assert [clip.name for clip in clips] == [f"a dog-0_{n:03d}.mp4" for n in range(3)]
    source = read_with_opencv(video)
    assert len(source) == FRAMES
    for clip, first in zip(clips, (0, 16, 25), strict=True):
        cut = read_with_opencv(clip)
        assert cut.shape == (16, 128, 128, 3)
        distance = [np.abs(cut.astype(int) - source[n : n + 16]).mean() for n in range(FRAMES - 15)]
        assert int(np.argmin(distance)) == first, "encoded anew, and still nearest to its own frames"
    told = [value for _, value in ended.answer["clips"]]
    assert told == pytest.approx([flicker_of(read_with_opencv(clip)) for clip in clips], abs=1e-6)
    assert ended.answer["score"] == pytest.approx(np.mean(told))

    request["clips"]["videos"][str(video)]["clips"] = 4
    (tmp_path / "again").mkdir()
    request["clips"]["folder"] = str(tmp_path / "again")
    wrong = run_worker(python, request, tmp_path / "wrong", variables, 900, worker=LONG_WORKER)
    assert "was cut into 3 clips of 2 s, and its frames and rate make 4" in wrong.reason


def test_ten_dimensions_run_inside_clips(tmp_path: Path, locations: dict[str, str]) -> None:
    samples = samples_for(tmp_path / "samples", *LONG)
    options: dict[str, Any] = {
        "suite": "vbench-long", "partial": True, "published_weights": False, "allow_zero": ("dynamic_degree",),
        "clip_to_clip": False, "dimensions": LONG,
    }  # fmt: skip
    context = vbench_context(tmp_path, samples, locations, **options)
    run(context)
    found = scores_of(context)
    assert all(found.metrics[f"vbench-long.{d}"].mean is not None for d in LONG)
    assert set(found.identity.stand_in) == {f"vbench-long.{d}" for d in LONG if d != FLICKER}
    for video in found.per_video:
        value = video.metrics[f"vbench-long.{FLICKER}"]
        if value is not None:  # of clips that were encoded anew
            frames = read_with_opencv(samples.path(video.file))
            sound = np.mean([flicker_of(frames[n : n + 16]) for n in (0, 16, 25)])
            assert value == pytest.approx(sound, abs=0.02)
    result = json.loads((context.scratch / "vbench" / FLICKER / "result.json").read_text())
    assert result["writer"] in ("torchvision", "av")


def test_first_frames_of_clips_are_compared_by_dinov2_offline(tmp_path: Path, locations: dict[str, str]) -> None:
    samples = samples_for(tmp_path / "samples", "subject_consistency")

    def measured(clip_to_clip: bool) -> float:
        options: dict[str, Any] = {
            "suite": "vbench-long", "partial": True, "published_weights": False, "clip_to_clip": clip_to_clip,
            "dimensions": ("subject_consistency",),
        }  # fmt: skip
        context = vbench_context(tmp_path / str(clip_to_clip), samples, locations, **options)
        run(context)
        value = scores_of(context).metrics["vbench-long.subject_consistency"].mean
        assert value is not None
        return value

    inside, fused = measured(False), measured(True)
    between = (fused - 0.7 * inside) / 0.3
    assert 0 < between <= 1
    assert fused != pytest.approx(inside, abs=1e-6)


def test_dreamsim_runs_offline_from_our_folder_without_a_gpu(tmp_path: Path, locations: dict[str, str]) -> None:
    """Upstream's call names a GPU and the home folder. DINO's stand-in is another after this: it is the last test."""
    environment = {**os.environ, "M4V_WORKER": str(WORKER), "VBENCH_CACHE_DIR": locations["cache_dir"]}
    places = [locations["cache_dir"], locations["torch_home"]]
    subprocess.run(
        [locations["long_python"], str(STANDINS), *places, "dreamsim"], env=environment, check=True, timeout=1800
    )
    samples = samples_for(tmp_path / "samples", "background_consistency")
    options: dict[str, Any] = {
        "suite": "vbench-long", "partial": True, "published_weights": False, "dimensions": ("background_consistency",)
    }  # fmt: skip
    context = vbench_context(tmp_path, samples, locations, **options)
    run(context)
    found = scores_of(context)
    value = found.metrics["vbench-long.background_consistency"].mean
    assert value is not None
    assert 0 < value <= 1
    assert found.identity.suite is not None
    assert {"dreamsim_dino", "dreamsim_clip", "dreamsim_open_clip", "dreamsim_lora"} <= set(
        found.identity.suite.weights
    )
