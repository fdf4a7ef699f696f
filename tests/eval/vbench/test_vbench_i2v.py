"""VBench-I2V: its data counted, the rule of its totals, the stage on a real child process with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_interpreter import fake_environment
from pydantic import ValidationError
from vbench_samples import sample_artifact, vbench_context

from eval.prompts import resolve_prompts
from eval.records import SCORES, ScoreSet
from eval.stages.vbench import run
from eval.suites import DimensionResult, Suite
from eval.vbench.config import Places, VBenchConfig
from eval.vbench.i2v import figures
from eval.vbench.i2v_prompts import I2V_DIMENSIONS, entries_of, ratio_of, read_entries, rules
from eval.vbench.i2v_suite import VBenchI2VSuite
from eval.vbench.intervals import affine
from eval.vbench.long_suite import open_suite
from eval.vbench.prompt_suite import SuitePrompt
from eval.vbench.weights import catalogue
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from pipelines.checkpoint_evaluation import sampling_config

CAMERA = "camera pans left"


def info(subjects: int = 246) -> list[dict[str, Any]]:
    """As upstream's file: subjects and backgrounds with pictures, and of each background seven motions of a camera."""
    pictures: list[dict[str, Any]] = [
        {
            "prompt_en": f"subject {n}",
            "dimension": ["i2v_subject", "aesthetic_quality"],
            "image_name": f"subject {n}.jpg",
        }
        for n in range(subjects)
    ]
    for n in range(109):
        text = f"background {n}"
        pictures.append({"prompt_en": text, "dimension": ["i2v_background"], "image_name": f"{text}.jpg"})
        pictures += [{"prompt_en": f"{text}, {CAMERA} {k}", "dimension": ["camera_motion"]} for k in range(7)]
    return pictures


def put_data(cache: Path, entries: list[dict[str, Any]]) -> Path:
    folder = cache / "i2v_data"
    (folder / "crop" / "1-1").mkdir(parents=True, exist_ok=True)
    (folder / rules().info).write_text(json.dumps(entries))
    (folder / "crop" / "7-4").mkdir(exist_ok=True)
    for entry in entries:
        if "image_name" in entry:  # of another ratio than the videos'
            (folder / "crop" / "7-4" / entry["image_name"]).write_text("")
    return folder


def test_its_data_is_counted_and_read_by_the_published_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_entries(put_data(tmp_path, info()))
    counts = {d: len(entries_of(d, found)) for d in I2V_DIMENSIONS}
    assert counts == {
        "i2v_subject": 246, "i2v_background": 109, "camera_motion": 763, "subject_consistency": 246,
        "background_consistency": 109, "motion_smoothness": 246, "dynamic_degree": 246, "aesthetic_quality": 355,
        "imaging_quality": 355,
    }  # fmt: skip
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    assert len(resolve_prompts("vbench-i2v")) == 246 + 109 + 763  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 246 prompts of i2v_subject, and this file 245"):
        read_entries(put_data(tmp_path, info(245)))
    pictureless = [{k: v for k, v in e.items() if k != "image_name"} for e in info()]
    with pytest.raises(InputError, match="names no picture: 'subject 0'"):
        read_entries(put_data(tmp_path, pictureless))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"prompts cannot be read.*as its download script has them"):
        resolve_prompts("vbench-i2v")


@pytest.mark.parametrize(
    ("size", "ratio"),
    [((1280, 768), "8-5"), ((1280, 720), "16-9"), ((512, 512), "1-1"), ((480, 848), "1-1"), ((700, 400), "7-4")],
)  # fmt: skip
def test_pictures_are_of_the_ratio_nearest_to_the_video_s(size: tuple[int, int], ratio: str) -> None:
    assert ratio_of(*size) == ratio


def test_totals_follow_the_published_rule() -> None:
    def of(scores: dict[str, float]) -> dict[str, float | None]:
        results = [DimensionResult(dimension=d, status="measured", expected=1, score=v) for d, v in scores.items()]
        return figures(results).figures

    assert of({d.name: d.max for d in rules().dimensions}) == {"total": 1.0, "i2v": 1.0, "quality": 1.0}
    assert of({d.name: d.min for d in rules().dimensions}) == {"total": 0.0, "i2v": 0.0, "quality": 0.0}
    start, slopes = affine("total", I2V_DIMENSIONS, "vbench-i2v")
    assert start < 0
    assert slopes["camera_motion"] == pytest.approx(0.5 * 0.1 / 2.1)
    assert slopes["dynamic_degree"] == pytest.approx(0.5 * 0.5 / 5.5)
    assert slopes["motion_smoothness"] == pytest.approx(0.5 / 5.5 / (0.9975 - 0.706))
    lacking = of({d: 0.5 for d in I2V_DIMENSIONS if d != "camera_motion"})
    assert (lacking["total"], lacking["i2v"]) == (None, None)
    assert lacking["quality"] is not None


def test_it_is_a_suite_and_its_videos_are_made_elsewhere() -> None:
    suite = open_suite(Places.of({}), VBenchConfig(suite="vbench-i2v"))
    assert isinstance(suite, Suite)
    assert (type(suite), suite.name, suite.dimensions) == (VBenchI2VSuite, "vbench-i2v", I2V_DIMENSIONS)
    with pytest.raises(ValidationError, match="VBench-I2V is measured on its own prompts"):
        VBenchConfig(suite="vbench-i2v", mode="custom")
    with pytest.raises(ConfigError, match=r"begin with its pictures.*m4v generate --prompts FILE\.jsonl"):
        sampling_config(None, "vbench-i2v", None, None, "cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two square videos of a subject, a background and a motion of the camera each."""
    known = {e["prompt_en"]: n for n, e in enumerate(info())}
    chosen = [SuitePrompt(known[t], t, ()) for t in ("subject 3", "background 0", f"background 0, {CAMERA} 1")]
    return sample_artifact(tmp_path_factory.mktemp("i2v") / "samples", chosen, samples=2)


@pytest.fixture
def locations(tmp_path: Path) -> dict[str, str]:
    roots = {"VBENCH_CACHE_DIR": tmp_path / "cache", "TORCH_HOME": tmp_path / "torch"}
    for name in {n for names in catalogue().i2v_needs.values() for n in names} - {"i2v_data"}:
        row = catalogue().files[name]
        place = roots[row.variable] / row.below
        parts = ("hubconf.py", "utils.py", "vision_transformer.py", "adapter_config.json") if row.is_folder else ("",)
        for part in parts:
            (place / part).parent.mkdir(parents=True, exist_ok=True)
            (place / part).write_text(name)
    crops = put_data(tmp_path / "cache", info()) / "crop" / "1-1"
    (crops / "subject 3.jpg").write_text("0.75")
    (crops / "background 0.jpg").write_text("0.25")
    python = fake_environment(tmp_path / "env", "i2v")
    return {"i2v_python": str(python), "cache_dir": str(tmp_path / "cache"), "torch_home": str(tmp_path / "torch"),
            "hf_home": str(tmp_path / "hf")}  # fmt: skip


def evaluated(root: Path, samples: Artifact, locations: dict[str, str], *dimensions: str, **more: Any) -> ScoreSet:
    options = {"partial": True, "published_weights": False, "failures": "record", "suite": "vbench-i2v", **more}
    context = vbench_context(root, samples, locations, dimensions=dimensions, **options)
    run(context)
    return ScoreSet.model_validate_json((context.output("scores") / SCORES).read_bytes())


def test_videos_are_compared_with_their_pictures(tmp_path: Path, samples: Artifact, locations: dict[str, str]) -> None:
    wanted = ("i2v_subject", "i2v_background", "camera_motion", "motion_smoothness")
    found = evaluated(tmp_path / "run", samples, locations, *wanted)
    assert found.figures is not None
    assert found.figures.failed == {}
    means = {name.partition(".")[2]: metric.mean for name, metric in found.metrics.items()}
    assert means == {"i2v_subject": 0.75, "i2v_background": 0.25, "camera_motion": 0.75, "motion_smoothness": 0.75}
    assert {m.count for m in found.metrics.values()} == {2}
    suite = found.identity.suite
    assert suite is not None
    assert (suite.name, suite.prompt_set, suite.partial) == ("vbench-i2v", "vbench-i2v", True)
    assert set(suite.environments) == {"worker", "long_worker", "i2v_worker", "i2v"}
    assert "i2v_data" in suite.weights
    assert set(found.figures.figures) == {"vbench-i2v.total", "vbench-i2v.i2v", "vbench-i2v.quality"}


def test_videos_and_pictures_that_are_missing_are_named(
    tmp_path: Path, samples: Artifact, locations: dict[str, str]
) -> None:
    with pytest.raises(DataIntegrityError, match=r"1228 of 1230 videos of i2v_subject are missing.*subject 0-0\.mp4"):
        evaluated(tmp_path / "a", samples, locations, "i2v_subject", partial=False)
    (tmp_path / "cache" / "i2v_data" / "crop" / "1-1" / "subject 3.jpg").unlink()
    with pytest.raises(InputError, match=r"picture of VBench-I2V is not there: 'subject 3\.jpg'"):
        evaluated(tmp_path / "b", samples, locations, "i2v_subject")
    (tmp_path / "cache" / "i2v_data" / rules().info).unlink()
    with pytest.raises(
        InputError,
        match=r"VBench-I2V cannot measure 1 of 1 dimensions here.*i2v_data is not whole: it lacks vbench2_i2v",
    ):
        evaluated(tmp_path / "c", samples, locations, "camera_motion")
