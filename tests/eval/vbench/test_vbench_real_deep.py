"""The real VBench, set up by our command, on a few little videos: the ten core dimensions with stand-in weights in the
right formats (never shown as results), the six others refused. Needs a package registry, some gigabytes, many minutes.
"""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from vbench_samples import prompts_for, sample_artifact, vbench_context

from eval.metrics.clip import Clip
from eval.metrics.pixels import flicker
from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.environment import SPECS
from eval.vbench.setup import set_up
from eval.vocabulary import Facts
from m4v.core.errors import InputError

pytestmark = [pytest.mark.deep, pytest.mark.timeout(5400)]
CORE = SPECS["core"].dimensions
STANDINS = Path(__file__).with_name("standin_weights.py")
WORKER = Path(__file__).parents[3] / "eval" / "vbench" / "worker.py"


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment made by our command, and stand-ins for every weight file that it reads."""
    root = tmp_path_factory.mktemp("real")
    made = set_up("core", root / "core")
    assert not made.already
    assert set_up("core", root / "core").already
    environment = {**os.environ, "M4V_WORKER": str(WORKER), "VBENCH_CACHE_DIR": str(root / "cache")}
    command = [str(made.python), str(STANDINS), str(root / "cache"), str(root / "torch")]
    subprocess.run(command, env=environment, check=True, timeout=1800)
    return {
        "core_python": str(made.python), "legacy_python": str(root / "legacy" / "bin" / "python"),
        "cache_dir": str(root / "cache"), "torch_home": str(root / "torch"), "hf_home": str(root / "hf"),
    }  # fmt: skip


def read_with_opencv(path: Path) -> np.ndarray:
    """As VBench does: it takes no notice of the colour matrix that our videos name."""
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    video.release()
    return np.stack(frames)


def test_ten_dimensions_run_and_six_are_refused_by_name(tmp_path: Path, locations: dict[str, str]) -> None:
    samples = sample_artifact(tmp_path / "samples", prompts_for(*CORE), samples=1, size=128)
    # Random weights may find no motion at all.
    options = {"partial": True, "published_weights": False, "allow_zero": ("dynamic_degree",)}
    with pytest.raises(InputError) as refused:
        run(vbench_context(tmp_path, samples, locations, "all", **options))
    assert f"6 of 16 dimensions here ({', '.join(SPECS['legacy'].dimensions)})" in str(refused.value.what)
    context = vbench_context(tmp_path, samples, locations, dimensions="available", **options)
    run(context)
    found = ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())
    assert found.figures is not None
    assert {n.removeprefix("vbench.") for n in found.figures.failed} == set(SPECS["legacy"].dimensions)
    assert all(found.metrics[f"vbench.{d}"].mean is not None for d in CORE)
    assert found.identity.suite is not None
    assert found.identity.suite.options["published_weights"] is False
    assert found.figures.figures["vbench.total"] is None

    per_video = {v.file: v.metrics["vbench.temporal_flickering"] for v in found.per_video}
    measured = {file: value for file, value in per_video.items() if value is not None}
    assert len(measured) == 1
    for file, value in measured.items():
        clip = Clip(frames=read_with_opencv(samples.path(file)), fps=8, prompt="", facts=Facts())
        assert flicker(clip).value == pytest.approx(value, abs=1e-6)
    result = json.loads((context.scratch / "vbench" / "temporal_flickering" / "result.json").read_text())
    assert result["operator_schemas"] is True
