"""Several spans of one file, from an annotation file to curated clips."""

import json
from dataclasses import dataclass
from pathlib import Path

import curation_runs
import nasty
import pytest

from dataprep.curation.items import Job, measure_all
from dataprep.curation.poison import PoisonList
from dataprep.engine import open_engine
from dataprep.engines.limits import WorkLimits
from dataprep.quarantine import ItemError, ItemFailure, Reason
from m4v.core.stage import Resources


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_each_span_becomes_clips_with_its_own_captions(tmp_path: Path) -> None:
    root = tmp_path / "osp"
    for seed, name in enumerate(("a", "b")):
        nasty.good_clip(root / "all" / f"{name}.mp4", None, count=72, seed=seed)
    rows: list[dict[str, object]] = [
        {"path": "a.mp4", "frame_idx": "24:48", "cap": "the middle"},
        {"path": "b.mp4", "cap": ["the whole of b"]},
        {"path": "a.mp4", "cut": [0, 24], "cap": ["the beginning", "how it begins"]},
        {"path": "a.mp4", "frame_idx": "900:999", "cap": "behind the end"},
        {"path": "a.mp4", "cap": "of all", "cut": [5]},
    ]
    (root / "anno.json").write_text(json.dumps(rows))
    adapter = {"kind": "opensora_plan", "sets": [{"annotation": "anno.json", "media": "all"}]}
    listed = curation_runs.list_source(tmp_path / "1", "osp", root, adapter)
    config = {**curation_runs.CHEAP, "dedup": {"perceptual": False}}
    made = curation_runs.context(tmp_path / "2", "curate", config, curation_runs.inputs(listed), {"osp": str(root)})
    found = curation_runs.curated(made)
    assert [(c["path"], c["first_frame"], c["frames"], c["captions"]) for c in found.clips] == [
        ("all/a.mp4", 0, 24, ["the beginning", "how it begins"]),
        ("all/a.mp4", 24, 24, ["the middle"]),
        ("all/b.mp4", 0, 72, ["the whole of b"]),
    ]
    assert sorted((q.path, q.reason) for q in found.quarantine) == [
        ("all/a.mp4", "bad_range"), ("all/a.mp4", "too_short"),
    ]  # fmt: skip


@dataclass(frozen=True)
class Task:
    name: str
    marks: Path


def work(task: Task) -> bytes:
    """Leaves a mark for each try."""
    (task.marks / f"{task.name}-{len(list(task.marks.glob(f'{task.name}-*')))}").touch()
    if task.name == "gone":
        raise ItemError(Reason.MISSING_FILE, "not there")
    return task.name.encode()


def test_equal_jobs_are_done_once_and_answered_each(tmp_path: Path) -> None:
    names = ("a", "b", "a", "gone", "a", "gone")
    jobs = [Job(Task(name, tmp_path), f"{name:0<8}", str(tmp_path / "items"), f"{name:0<8}-key") for name in names]
    other = Job(
        Task("other", tmp_path), "a0000000", str(tmp_path / "items"), f"{'a':0<8}-key"
    )  # same bytes, another file
    limits = WorkLimits(60, None, None)
    poison = PoisonList(str(tmp_path / "poison"), limits, 2)
    with open_engine(Resources(workers=1), isolate=False) as engine:
        results = list(measure_all(engine, work, [*jobs, other], limits, poison))
    gone = ItemFailure(Reason.MISSING_FILE, "not there")
    assert results == [b"a", b"b", b"a", gone, b"a", gone, b"other"]
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["a-0", "b-0", "gone-0", "other-0"]
