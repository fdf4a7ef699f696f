"""The real VBench, set up by our command, on a few little videos: the ten core dimensions with stand-in weights in the
right formats (never shown as results), the six others refused. Needs a package registry, some gigabytes, many minutes.
"""

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from vbench_samples import prompts_for, sample_artifact, vbench_context

from eval.metrics.clip import Clip
from eval.metrics.pixels import flicker
from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.vbench.environment import SPECS
from eval.vbench.setup import set_up
from eval.vocabulary import Facts
from m4v.core.errors import InfrastructureError, InputError
from m4v.core.stage import StageContext

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
    found = {
        "core_python": str(made.python), "legacy_python": str(root / "legacy" / "bin" / "python"),
        "cache_dir": str(root / "cache"), "torch_home": str(root / "torch"), "hf_home": str(root / "hf"),
    }  # fmt: skip
    make_weights(found)
    return found


def make_weights(locations: dict[str, str], *flow: str) -> None:
    environment = {**os.environ, "M4V_WORKER": str(WORKER), "VBENCH_CACHE_DIR": locations["cache_dir"]}
    command = [locations["core_python"], str(STANDINS), locations["cache_dir"], locations["torch_home"], *flow]
    subprocess.run(command, env=environment, check=True, timeout=1800)


def scores_of(context: StageContext) -> ScoreSet:
    return ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


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
    options: dict[str, Any] = {"partial": True, "published_weights": False, "allow_zero": ("dynamic_degree",)}
    with pytest.raises(InputError) as refused:
        run(vbench_context(tmp_path, samples, locations, "all", **options))
    assert f"6 of 16 dimensions here ({', '.join(SPECS['legacy'].dimensions)})" in str(refused.value.what)
    context = vbench_context(tmp_path, samples, locations, dimensions="available", **options)
    run(context)
    found = scores_of(context)
    assert found.figures is not None
    assert {n.removeprefix("vbench.") for n in found.figures.failed} == set(SPECS["legacy"].dimensions)
    assert all(found.metrics[f"vbench.{d}"].mean is not None for d in CORE)
    assert found.identity.suite is not None
    assert found.identity.suite.options["published_weights"] is False
    assert set(found.figures.figures.values()) == {None}
    weighted = {f"vbench.{d}" for d in CORE if d != "temporal_flickering"}
    assert set(found.identity.stand_in) == weighted
    assert {n for n, m in found.metrics.items() if m.title.endswith("(stand-in weights)")} == weighted
    published = vbench_context(tmp_path, samples, locations, "2", dimensions=CORE, partial=True)
    with pytest.raises(InputError, match=r"9 of 10 dimensions here .*lies in a folder of stand-in weights"):
        run(published)

    per_video = {v.file: v.metrics["vbench.temporal_flickering"] for v in found.per_video}
    measured = {file: value for file, value in per_video.items() if value is not None}
    assert len(measured) == 1
    for file, value in measured.items():
        clip = Clip(frames=read_with_opencv(samples.path(file)), fps=8, prompt="", facts=Facts())
        assert flicker(clip).value == pytest.approx(value, abs=1e-6)
    result = json.loads((context.scratch / "vbench" / "temporal_flickering" / "result.json").read_text())
    assert result["operator_schemas"] is True


def test_a_killed_worker_costs_its_dimension_and_the_next_attempt_goes_on(
    tmp_path: Path, locations: dict[str, str]
) -> None:
    samples = sample_artifact(tmp_path / "samples", prompts_for("temporal_flickering", "imaging_quality"), size=128)
    options: dict[str, Any] = {
        "dimensions": ("temporal_flickering", "imaging_quality"), "partial": True, "published_weights": False
    }  # fmt: skip
    over, killed = threading.Event(), list[int]()

    def kill() -> None:
        while not over.is_set() and not killed:
            for child in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(child.cmdline())
                    if "worker.py" in words and "/imaging_quality/" in words:
                        child.kill()
                        killed.append(child.pid)
                except psutil.NoSuchProcess:
                    pass
            time.sleep(0.02)

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        with pytest.raises(InfrastructureError, match="1 of 2 dimensions failed: imaging_quality: killed"):
            run(vbench_context(tmp_path, samples, locations, "1", **options))
    finally:
        over.set()
        watcher.join()
    assert len(killed) == 1
    context = vbench_context(tmp_path, samples, locations, "2", **options)
    run(context)
    found = scores_of(context)
    assert [found.metrics[f"vbench.{d}"].count for d in options["dimensions"]] == [1, 1]
    logs = sorted(p.parent.name for p in (context.scratch / "vbench").glob("*/worker.log"))
    assert logs == ["imaging_quality"], "what was measured is not measured again"


def test_upstream_s_static_filter_decides_which_videos_count(tmp_path: Path, locations: dict[str, str]) -> None:
    options: dict[str, Any] = {
        "dimensions": ("temporal_flickering",), "static_filter": True, "partial": True, "published_weights": False,
        "failures": "record",
    }  # fmt: skip

    def filtered(size: int, step: str) -> tuple[StageContext, ScoreSet]:
        root = tmp_path / f"{size}-{step}"
        prompts = prompts_for("temporal_flickering")
        samples = sample_artifact(root / "samples", prompts, samples=6, size=size, frames=5)
        make_weights(locations, step)
        context = vbench_context(root, samples, locations, "1", **options)
        run(context)
        return context, scores_of(context)

    context, found = filtered(128, "0")
    values = [v.metrics["vbench.temporal_flickering"] for v in found.per_video]
    assert [value is not None for value in values] == [True] * 5 + [False]
    assert context.collected_metrics()["near_static_videos"] == 5
    for size, step, reason in (
        (128, "5", "none of 6 videos is near-static"), (64, "0", "RAFT's flow is no number")
    ):  # fmt: skip
        figures = filtered(size, step)[1].figures
        assert figures is not None
        assert reason in figures.failed["vbench.temporal_flickering"]
