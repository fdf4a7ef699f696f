"""The real VBench-I2V of PyPI on little videos of one colour: two of its three new dimensions on made networks whose
answers are known, against our own arithmetic. Needs a package registry, a gigabyte, some minutes.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eval.vbench.child import I2V_WORKER, Ended, run_worker
from m4v.video_io import write_mp4

pytestmark = [pytest.mark.deep, pytest.mark.timeout(3600)]
PACKAGES = ("opencv-python-headless", "decord==0.6.0", "pyyaml", "tqdm", "pillow", "requests")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DINO = '''
"""STAND-IN of a test for facebookresearch/dino: a picture's features are its mean colour."""
import torch

dependencies = ["torch"]


class Colour(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def dino_vitb16(pretrained=True, **kwargs):
    return Colour()
'''
# Every track of the grid of 10 x 10 points moves to the right by 8 pixels.
COTRACKER = '''
"""STAND-IN of a test for facebookresearch/co-tracker: whatever the video shows, everything moves to the right."""
import torch

dependencies = ["torch"]


class Right(torch.nn.Module):
    def forward(self, video, grid_size):
        place = torch.linspace(8, 56, grid_size)
        grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1).reshape(1, 1, -1, 2)
        shift = torch.linspace(0, 8, video.shape[1]).reshape(1, -1, 1, 1) * torch.tensor([1.0, 0.0])
        return grid + shift, None


def cotracker2():
    return Right()
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, "-m", "venv", str(root / "env")], check=True)
    found = root / "env" / "bin" / "python"
    own = importlib.metadata.version("torch").partition("+")[0]
    install = [str(found), "-m", "pip", "install", "-q"]
    subprocess.run([*install, f"torch=={own}", "torchvision", "setuptools<81", *PACKAGES], check=True)
    subprocess.run([*install, "--no-deps", "vbench-pruna==0.0.1"], check=True)
    return found


def measured(python: Path, root: Path, dimension: str, entries: list[dict[str, Any]]) -> Ended:
    for place, text in (
        (root / "cache" / "dino_model" / "facebookresearch_dino_main", DINO),
        (root / "torch" / "hub" / "facebookresearch_co-tracker_main", COTRACKER),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / "hubconf.py").write_text(text)
    (root / "cache" / "dino_model" / "dino_vitbase16_pretrain.pth").touch()
    request = {
        "task": "evaluate", "dimension": dimension, "device": "cpu", "threads": 1, "ratio": "1-1",
        "images": str(root / "pictures"), "entries": entries, "full_info": str(root / f"{dimension}.json"),
    }  # fmt: skip
    variables = {"VBENCH_CACHE_DIR": str(root / "cache"), "TORCH_HOME": str(root / "torch")}
    return run_worker(python, request, root / f"run-{dimension}", variables, 600, worker=I2V_WORKER)


def filmed(path: Path, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Writes frames of one colour each; their colours as a reader has them, in 0 to 1."""
    write_mp4(path, np.stack([np.full((64, 64, 3), c, np.uint8) for c in colours]), 8)
    reader, found = cv2.VideoCapture(str(path)), []
    while (read := reader.read())[0]:
        found.append(read[1][:, :, ::-1].reshape(-1, 3).mean(axis=0) / 255)
    return np.stack(found)


def test_a_video_is_compared_with_its_picture_as_we_count(tmp_path: Path, python: Path) -> None:
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "a.png"), np.full((64, 64, 3), (30, 90, 200), np.uint8))
    film = tmp_path / "a-0.mp4"
    colours = filmed(film, [(200, 90, 30), (180, 120, 60), (60, 120, 180), (20, 200, 90)])
    entry = {"prompt_en": "a", "dimension": ["i2v_subject"], "image_name": "a.png", "video_list": [str(film)]}
    ended = measured(python, tmp_path, "i2v_subject", [entry])
    assert ended.end == "answered", ended.reason
    assert ended.answer is not None

    def unit(colour: np.ndarray) -> np.ndarray:
        found = (colour - MEAN) / STD
        return found / np.linalg.norm(found)

    frames = [unit(c) for c in colours]
    to_picture = [max(0.0, float(f @ unit(np.array([200, 90, 30]) / 255))) for f in frames]
    to_last = [max(0.0, float(a @ b)) for a, b in itertools.pairwise(frames)]
    ours = 0.4 * max(to_picture) + 0.3 * np.mean(to_last) + 0.3 * min(to_last)
    assert ended.answer["videos"] == [[str(film), pytest.approx(ours, abs=0.01)]]
    assert ended.answer["score"] == pytest.approx(ended.answer["videos"][0][1])


def test_a_camera_s_motion_is_told_by_the_file_s_name(tmp_path: Path, python: Path) -> None:
    """What moves to the right is seen by a camera that pans to the left."""
    entries = []
    for words in ("left", "right"):
        film = tmp_path / f"a, camera pans {words}-0.mp4"
        filmed(film, [(90, 90, 90)] * 4)
        entries.append(
            {"prompt_en": f"a, camera pans {words}", "dimension": ["camera_motion"], "video_list": [str(film)]}
        )
    (tmp_path / "pictures").mkdir()
    ended = measured(python, tmp_path, "camera_motion", entries)
    assert ended.end == "answered", ended.reason
    assert ended.answer is not None
    assert [value for _, value in ended.answer["videos"]] == [1.0, 0.0]
