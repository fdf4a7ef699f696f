"""The real VBench-2.0 of PyPI on little videos: which of its dimensions its wheel can run at all, and that one, on a
random VGG-19, against our own arithmetic. Needs a package registry, a gigabyte, some minutes.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from vbench_samples import sample_artifact, vbench_context

from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.preflight import preflight
from eval.vbench.prompt_suite import SuitePrompt
from eval.vbench.v2_prompts import V2_DIMENSIONS, prompts_of
from eval.vbench.weights import catalogue
from m4v.core.errors import InputError

pytestmark = [pytest.mark.deep, pytest.mark.timeout(3600)]
LAYERS = (0, 5, 10, 19, 28, 30)
# What the wheel's own programs import, without upstream's pins: the wheel alone is under test.
PACKAGES = ("opencv-python-headless", "decord==0.6.0", "scenedetect==0.6.5.2", "gdown", "pyyaml", "tqdm", "pillow")


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An interpreter with the wheel, and a random VGG-19 in the place of the published one."""
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, "-m", "venv", str(root / "env")], check=True)
    python = root / "env" / "bin" / "python"
    own = importlib.metadata.version("torch").partition("+")[0]
    install = [str(python), "-m", "pip", "install", "-q"]
    subprocess.run([*install, f"torch=={own}", "torchvision", "setuptools<81", *PACKAGES], check=True)
    subprocess.run([*install, "--no-deps", "vbench2==0.1.1"], check=True)
    weights = root / "torch" / catalogue().files["vgg19"].below
    weights.parent.mkdir(parents=True)
    model = "import torch, sys; sys.path.insert(0, sys.argv[2]); import worker; worker.import_torchvision('cpu'); "
    model += "from torchvision.models import vgg19; torch.manual_seed(0); torch.save(vgg19().state_dict(), sys.argv[1])"
    folder = Path(__file__).parents[3] / "eval" / "vbench"
    subprocess.run([str(python), "-c", model, str(weights), str(folder)], check=True)
    return {"vbench2_python": str(python), "torch_home": str(root / "torch"), "hf_home": str(root / "hf"),
            "vbench2_cache_dir": str(root / "cache")}  # fmt: skip


def features(video: Path, weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Upstream's six layers of VGG-19, as a GPU keeps them (before the ReLU), by our own loop over its layers."""
    reader, frames = cv2.VideoCapture(str(video)), []
    while (read := reader.read())[0]:
        rgb = cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        picture = Image.fromarray(rgb).resize((512, 512), Image.Resampling.BILINEAR)
        frames.append(np.asarray(picture, dtype=np.float32) / 255)
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found, plan = [], [2, 2, 4, 4]  # convolutions before each pooling
    place, pools = 0, {sum(2 * n + 1 for n in plan[: k + 1]) - 1 for k in range(len(plan))}
    while place <= LAYERS[-1]:
        if place in pools:
            x = torch.nn.functional.max_pool2d(x, 2)
        elif f"features.{place}.weight" in weights:
            x = torch.nn.functional.conv2d(
                x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1
            )
        else:
            x = x.relu()
        if place in LAYERS:
            found.append(x)
        place += 1
    return found


def diversity(videos: list[list[torch.Tensor]]) -> float:
    """Mean over pairs of content's distance and a thousand times style's, halved, over 17.712."""

    def gram(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        return flat @ flat.transpose(1, 2) / x[0].numel()

    content, style, pairs = 0.0, 0.0, 0
    for n, one in enumerate(videos):
        for two in videos[n + 1 :]:
            pairs += 1
            content += float((one[5] - two[5]).abs().mean())
            style += float(torch.stack([(gram(one[k]) - gram(two[k])).abs().mean() for k in range(5)]).mean())
    return min(1.0, max(0.0, (content / pairs + 1000 * style / pairs) / 2 / 17.712))


def test_its_wheel_has_one_dimension_and_that_one_is_as_we_count(tmp_path: Path, locations: dict[str, str]) -> None:
    found = preflight(VBenchConfig(suite="vbench2", published_weights=False), Places.of(locations))
    assert found.available == ("diversity",)
    assert any("No module named 'llava'" in reason for reason in found.refused["composition"])
    assert any("vbench2.third_party.cotracker" in reason for reason in found.refused["camera_motion"])
    assert len(found.refused) == len(V2_DIMENSIONS) - 1

    each = prompts_of("diversity")[0]
    samples = sample_artifact(
        tmp_path / "samples", [SuitePrompt(each.number, each.prompt, each.dimensions)], samples=3, frames=2
    )
    options: dict[str, Any] = {"suite": "vbench2", "partial": True, "dimensions": ("diversity",)}
    with pytest.raises(InputError, match="is not the published file"):
        run(vbench_context(tmp_path / "strict", samples, locations, **options))
    context = vbench_context(tmp_path, samples, locations, published_weights=False, **options)
    run(context)
    scores = ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())
    assert scores.identity.stand_in == ("vbench2.diversity",)
    weights = torch.load(Path(locations["torch_home"]) / catalogue().files["vgg19"].below, weights_only=True)
    ours = diversity([features(samples.path(f"videos/{each.number:04d}-{n:04d}.mp4"), weights) for n in range(3)])
    assert 0 < ours < 1
    assert scores.metrics["vbench2.diversity"].mean == pytest.approx(ours, abs=2e-6), "as a GPU would have it"
