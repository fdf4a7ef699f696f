"""What a curation tells while it runs and when it is done, and the yield that a recipe expects of it."""

import json
from pathlib import Path
from typing import Any

import encode_support as support
import pytest
from curation_runs import CHEAP, context, curated, inputs, list_source

from dataprep.curate_config import CurateConfig
from m4v.core.config import parse
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.core.stage import InputRef, Progress, ProgressReporter
from m4v.video_io import write_mp4

FPS = 24
FRAMES = (24, 30, 48)


def config(**changes: Any) -> dict[str, Any]:
    """Three films, of which the shortest is dropped."""
    filters = {**CHEAP["filters"], "min_motion": None, "min_frames": 25}
    return {
        "shots": {"detector": "none"}, "signals": CHEAP["signals"], "dedup": {"perceptual": False}, "filters": filters,
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InputRef]:
    folder = tmp_path_factory.mktemp("films")
    for number, frames in enumerate(FRAMES):
        write_mp4(folder / f"take-{number}.mp4", support.drawn(frames, 64, 96, number), FPS)
        (folder / f"take-{number}.txt").write_text(f"take {number}")
    listing = list_source(folder / "source", "films", folder, {"kind": "folder", "licence": "CC0-1.0"})
    return folder, listing


def test_progress_tells_queue_video_hours_and_cost(films: tuple[Path, InputRef], tmp_path: Path, monkeypatch) -> None:
    folder, listing = films
    wrote: list[tuple[ProgressReporter, Progress]] = []
    monkeypatch.setattr(ProgressReporter, "_write", lambda self: wrote.append((self, self._state)))
    monkeypatch.setattr(ProgressReporter, "SETTLED_S", 1e-6)  # all is done within the first second
    items = tmp_path / "items"
    made = context(tmp_path / "one", "curate", config(), inputs(listing), {"films": str(folder)}, items=items)
    curated(made)
    metrics = made.collected_metrics()
    assert metrics["items_worked"] == 3 * len(FRAMES), "a probe, a segment and a clip of each film"
    assert metrics["items_retried"] == 0
    assert metrics["video_hours"] == pytest.approx(sum(FRAMES) / FPS / 3600, abs=1e-6)
    assert metrics["worker_cpu_s"] > 0
    minutes = sum(FRAMES) / FPS / 60
    assert metrics["cpu_s_per_video_minute"] == pytest.approx(metrics["worker_cpu_s"] / minutes, rel=0.01)
    live = [state for who, state in wrote if who is made.progress and state.figures]  # others' hearts may still beat
    assert live[0].figures["waiting"] > live[-1].figures["waiting"] == 0
    assert all(state.figures["workers"] == 1 for state in live)
    assert "video-hours" in live[-1].note
    assert "CPU-s a video-minute" in live[-1].note
    assert any(state.rate for state in live)
    again = context(tmp_path / "two", "curate", config(), inputs(listing), {"films": str(folder)}, items=items)
    curated(again)
    metrics = again.collected_metrics()
    assert (metrics["items_worked"], metrics["video_hours"], metrics["cpu_s_per_video_minute"]) == (0, 0, None)


def test_a_yield_outside_the_expected_band_fails_the_stage(films: tuple[Path, InputRef], tmp_path: Path) -> None:
    folder, listing = films
    items = tmp_path / "items"

    def curate(name: str, band: list[float]) -> int:
        stage = context(
            tmp_path / name, "curate", config(expected_yield=band), inputs(listing), {"films": str(folder)}, items=items
        )
        try:
            return len(curated(stage).kept())
        finally:
            stage.progress.close()
            assert (tmp_path / name / "staging" / "clips" / "manifest.json").exists() is (name == "fits")

    assert curate("fits", [0.6, 0.7]) == 2
    for name, band in (("less", [0.7, 1.0]), ("more", [0.0, 0.5])):
        with pytest.raises(DataIntegrityError, match=r"2 of 3 clips are kept, 66.7%, where .* were expected") as caught:
            curate(name, band)
        assert "too_short" in str(caught.value)
        assert "expected_yield" in str(caught.value)


def test_an_expected_yield_enters_the_key_only_where_there_is_one() -> None:
    plain, bound = parse(CurateConfig, {}, "test"), parse(CurateConfig, {"expected_yield": [0.2, 0.9]}, "test")
    assert "expected_yield" not in plain.key_config()
    assert json.loads(json.dumps(bound.key_config()))["expected_yield"] == [0.2, 0.9]
    for band in ([0.9, 0.2], [0.0, 1.5]):
        with pytest.raises(ConfigError, match="expected_yield"):
            parse(CurateConfig, {"expected_yield": band}, "test")
