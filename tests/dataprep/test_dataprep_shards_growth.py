"""Nothing that is done is done twice: one more video, kills around the close of a shard, and a full disk."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import encode_support as support
import pytest
from curation_runs import CHEAP, context, curated, inputs, list_source

from dataprep.shards import SHARDS, verify_shards
from dataprep.stages import encode
from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InfrastructureError
from m4v.core.shard_index import INDEX, iterate, read_index
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.video_io import write_mp4

CONFIG: dict[str, object] = {
    "buckets": {"frames": [9, 17, 33], "sizes": [[64, 64], [64, 128]]}, "text_encoder": {"slots": 16},
    "reconstructions": 1, "shards": {"samples": 2},
}  # fmt: skip
CURATE: dict[str, Any] = {
    "shots": {"detector": "none"}, "signals": CHEAP["signals"], "dedup": {"perceptual": False},
    "filters": {**CHEAP["filters"], "min_motion": None, "min_frames": 9},
}  # fmt: skip


HITS = ("latents_cached", "texts_cached", "latents_encoded")


def _film(folder: Path, number: int) -> None:
    write_mp4(folder / f"take-{number}.mp4", support.drawn(20 + 2 * number, 80, 128, number), 24)
    (folder / f"take-{number}.txt").write_text(f"a square moves, take {number}")


def _stamps(items: Path) -> dict[str, int]:
    return {p.relative_to(items).as_posix(): p.stat().st_mtime_ns for p in items.rglob("*") if p.is_file()}


class Collection:
    """A folder of videos, taken through source, curate and encode with one item store."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.items, self.runs = root, root / "films", root / "items", 0
        self.folder.mkdir()

    def encode(self) -> tuple[Path, dict[str, object]]:
        """Directory of the dataset, and what the encode run says of its items."""
        self.runs += 1
        work = self.root / f"run-{self.runs}"
        adapter = {"kind": "folder", "licence": "CC0-1.0"}
        source = list_source(work / "source", "films", self.folder, adapter)
        places = {"films": str(self.folder)}
        made = context(work / "curate", "curate", CURATE, inputs(source), places, items=self.items)
        clips = curated(made)
        table = InputRef(
            name="clips", kind=ArtifactKind.CLIPS, artifact_id=clips.manifest.artifact_id, uri=str(clips.directory)
        )
        request = StageRequest(
            stage="encode", stage_version=1, function="dataprep.stages.encode:run", config_model="", stage_key="k",
            attempt_id="a", config=CONFIG, seed=0, inputs=(table, *inputs(source)),
            outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),), store_uri=str(work / "store"),
            work_dir=str(work / "encode"), state_uri=str(work / "state"), items_uri=str(self.items), locations=places,
        )  # fmt: skip
        stage = StageContext(request)
        encode.run(stage)
        stage.progress.close()
        return stage.output("dataset"), {name: stage.collected_metrics()[name] for name in HITS}


def test_one_more_video_redoes_only_that_video(tmp_path: Path):
    collection = Collection(tmp_path)
    for number in range(4):
        _film(collection.folder, number)
    first, metrics = collection.encode()
    assert metrics == {"latents_cached": 0, "texts_cached": 0, "latents_encoded": 4}
    before = _stamps(collection.items)
    _film(collection.folder, 4)
    second, metrics = collection.encode()
    assert metrics == {"latents_cached": 4, "texts_cached": 4, "latents_encoded": 1}
    after = _stamps(collection.items)
    assert {path: after[path] for path in before} == before, "no item was made again"
    per_video = {step: sum(p.startswith(f"{step}/") for p in before) for step in {p.split("/")[0] for p in before}}
    new = {step: sum(p.startswith(f"{step}/") for p in after.keys() - before.keys()) for step in per_video}
    assert {step: count for step, count in new.items() if step != "reconstructions"} == {
        step: count // 4 for step, count in per_video.items() if step != "reconstructions"
    }
    rows = {str(r["source_id"]): r for r in iterate(read_index(first / INDEX))}
    for row in iterate(read_index(second / INDEX)):
        old = rows.get(str(row["source_id"]))
        digests = [n for n in row if n.endswith(("sha256", "_id"))]
        assert old is None or all(old[n] == row[n] for n in digests)


_KILLED = """
import os, signal, sys
from pathlib import Path
import dataprep.shards as shards
import dataprep.encode.dataset as dataset
import encode_support as support
from m4v.core.stage import StageContext, StageRequest
when = sys.argv[2]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if when == "shard half written":
    append, calls = shards._OpenShard.append, []
    def dying(self, name, data):
        calls.append(name)
        placed = append(self, name, data)
        if len(calls) == 8:
            self._stream.flush()
            die()
        return placed
    shards._OpenShard.append = dying
elif when == "shard whole, not in its place":
    replace = Path.replace
    Path.replace = lambda self, target: die() if str(target).endswith(".tar") else replace(self, target)
elif when == "second shard closing":
    close, closed = shards._OpenShard.close, []
    def dying(self):
        if closed:
            die()
        closed.append(1)
        close(self)
    shards._OpenShard.close = dying
else:
    dataset.IndexWriter = die
support.run(StageContext(StageRequest.model_validate_json(Path(sys.argv[1]).read_text())))
"""
KILLS = (
    "tars closed, no index",
    *(
        pytest.param(when, marks=pytest.mark.deep)
        for when in ("shard half written", "shard whole, not in its place", "second shard closing")
    ),
)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[support.Bench, dict[str, str]]:
    """A bench with a dataset already encoded, and the digests of its files."""
    bench = support.make_bench(tmp_path_factory.mktemp("kills"))
    whole, _ = bench.encode("whole", CONFIG)
    return bench, support.tree_digest(whole)


@pytest.mark.parametrize("when", KILLS)
def test_a_kill_around_the_close_of_a_shard_loses_nothing(encoded: tuple[support.Bench, dict[str, str]], when: str):
    bench, digests = encoded
    name = when.replace(" ", "-").replace(",", "")
    request = bench.request(bench.root / name, CONFIG, bench.root / "whole-items", Resources())
    path = bench.root / f"{name}.json"
    path.write_text(request.model_dump_json())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run([sys.executable, "-c", _KILLED, str(path), when], env=environment, check=False)
    assert child.returncode == -signal.SIGKILL
    left = bench.root / name / "staging" / "dataset"
    assert not (left / INDEX).exists()
    for tar in (left / SHARDS).glob("[0-9]*.tar"):
        assert support.hashlib.sha256(tar.read_bytes()).hexdigest() == digests[f"{SHARDS}/{tar.name}"]
    resumed, run = bench.encode(name, CONFIG, items="whole-items")  # in the very directory that the killed one left
    assert [run.collected_metrics()[name] for name in HITS] == [5, 5, 0]
    found = {p: d for p, d in support.tree_digest(resumed).items() if not p.endswith(".tmp")}
    assert found == digests


_FULL = """
import resource, signal, sys
from pathlib import Path
import encode_support as support
from m4v.core.stage import StageContext, StageRequest
from pipelines.stage_process import classify, message_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
context = StageContext(StageRequest.model_validate_json(Path(sys.argv[1]).read_text()))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    support.run(context)
except BaseException as error:
    print(message_of(error))
    sys.exit(int(classify(error)))
"""


def test_a_disk_that_takes_no_more_ends_the_stage_as_infrastructure(encoded: tuple[support.Bench, dict[str, str]]):
    """The kernel refuses to let a file grow past a limit in the midst of a shard; then the limit is gone."""
    bench, digests = encoded
    request = bench.request(bench.root / "full", CONFIG, bench.root / "whole-items", Resources())
    path = bench.root / "full.json"
    path.write_text(request.model_dump_json())
    sizes = [p.stat().st_size for p in (bench.root / "whole" / "staging" / "dataset" / SHARDS).glob("*.tar")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run(
        [sys.executable, "-c", _FULL, str(path), str(max(sizes) - 2048)],
        env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 30, child.stdout + child.stderr
    assert "storage failed" in child.stdout
    left = bench.root / "full" / "staging" / "dataset" / SHARDS
    assert list(left.glob(".*.tmp")) == [], "a shard by halves is no use to anybody"
    resumed, run = bench.encode("full", CONFIG, items="whole-items")
    assert run.collected_metrics()["latents_encoded"] == 0
    assert support.tree_digest(resumed) == digests


def test_writer_leaves_nothing_by_halves(tmp_path: Path):
    """An error in the midst of a shard, and a write that the kernel refuses."""
    from test_dataprep_shards import _sample, _write

    with pytest.raises(ValueError, match="twice"):
        _write(tmp_path / "a", [_sample(n) for n in (0, 1, 0)])
    assert list((tmp_path / "a" / SHARDS).iterdir()) == []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        with pytest.raises(InfrastructureError, match="storage failed"):
            _write(tmp_path / "b", [_sample(n) for n in range(3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "b" / SHARDS).iterdir()) == []
    verify_shards(tmp_path / "b" / SHARDS, _write(tmp_path / "b", [_sample(n) for n in range(3)]))
