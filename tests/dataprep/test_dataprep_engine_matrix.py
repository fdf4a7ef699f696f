"""Curate and encode by every engine with 1, 2 and 4 workers, undisturbed and with a worker or a node killed in each
stage: the same bytes every time."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import encode_support as support
import psutil
import pytest
from curation_runs import CHEAP, context, curated, inputs, list_source
from ray_cluster import Nodes, cluster

from dataprep.stages import encode
from m4v.core.artifacts import ArtifactKind, build_manifest
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.video_io import write_mp4

pytestmark = pytest.mark.deep
FILMS = 10
ENCODE: dict[str, object] = {
    "buckets": {"frames": [9, 17, 33], "sizes": [[64, 64], [128, 192]]}, "text_encoder": {"slots": 16},
    "reconstructions": 1, "shards": {"samples": 3},
}  # fmt: skip
CURATE: dict[str, Any] = {
    "shots": {"detector": "none"}, "signals": CHEAP["signals"], "dedup": {"perceptual": False},
    "filters": {**CHEAP["filters"], "min_motion": None, "min_frames": 9},
}  # fmt: skip
Kill = Callable[[], None]


@dataclass(frozen=True)
class Made:
    """Identities of the two artifacts, digests of the items, and what was given to a second worker."""

    clips: str
    dataset: str
    items: dict[str, str]
    retried: tuple[int, int]


class Films:
    """A folder of drawn videos and its listing."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.runs = root, root / "films", 0
        self.folder.mkdir()
        for number in range(FILMS):
            frames = support.drawn(40 + 4 * number, 160, 256, number)
            write_mp4(self.folder / f"take-{number}.mp4", frames, 24)
            (self.folder / f"take-{number}.txt").write_text(f"a square moves, take {number}")
        self.source = list_source(root / "source", "films", self.folder, {"kind": "folder", "licence": "CC0-1.0"})

    def make(self, resources: Resources, kill: Kill | None = None, before: Kill | None = None) -> Made:
        """Both stages with an item store of their own; `kill` is called in each once its first item is kept, and
        `before` ahead of each."""
        self.runs += 1
        work = self.root / f"run-{self.runs}"
        items, places = work / "items", {"films": str(self.folder)}
        before = before or (lambda: None)
        before()
        stage = context(work / "curate", "curate", CURATE, inputs(self.source), places, resources, items)
        clips = _disturbed(lambda: curated(stage), items, "curate-segment", kill)
        before()
        table = InputRef(
            name="clips", kind=ArtifactKind.CLIPS, artifact_id=clips.manifest.artifact_id, uri=str(clips.directory)
        )
        request = StageRequest(
            stage="encode", stage_version=1, function="dataprep.stages.encode:run", config_model="", stage_key="k",
            attempt_id="a", config=ENCODE, seed=0, inputs=(table, *inputs(self.source)),
            outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),), store_uri=str(work / "store"),
            work_dir=str(work / "encode"), state_uri=str(work / "state"), items_uri=str(items), locations=places,
            resources=resources,
        )  # fmt: skip
        encoding = StageContext(request)
        _disturbed(lambda: encode.run(encoding), items, "latents", kill)
        encoding.progress.close()
        summary = encoding.summaries()["dataset"]
        dataset = build_manifest(encoding.output("dataset"), ArtifactKind.DATASET, summary).artifact_id
        retried = [int(str(c.collected_metrics()["items_retried"])) for c in (stage, encoding)]
        kept = {p: d for p, d in support.tree_digest(items).items() if not p.endswith(("last-used", ".tmp"))}
        return Made(clips.manifest.artifact_id, dataset, kept, (retried[0], retried[1]))


def _disturbed(run: Callable[[], Any], items: Path, step: str, kill: Kill | None) -> Any:
    """Run a stage, and call `kill` once the first item of `step` is kept; it must come before the stage's end."""
    if kill is None:
        return run()
    over, killed = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if any(p.is_file() for p in items.glob(f"{step}/*/*/*")):
                kill()
                killed.set()
                return
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run()
    finally:
        over.set()
        watcher.join()
    assert killed.is_set()
    return result


def _kill_a_child() -> None:
    """SIGKILL of a worker of the process engine; they hang below a fork server."""
    me = psutil.Process()
    workers = [p for p in me.children(recursive=True) if p.ppid() != me.pid and "forkserver" in " ".join(p.cmdline())]
    workers[0].kill()


def _hosts(node: Any) -> int:
    """Actors on a node."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return sum("ray::Host" in " ".join(p.cmdline()) for p in raylet.children(recursive=True))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    return Films(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def plain(films: Films) -> Made:
    """What one worker on this machine makes, undisturbed."""
    return films.make(Resources())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster() as started:
        yield started


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("killed", [False, True])
def test_processes_make_the_same_bytes(films: Films, plain: Made, workers: int, killed: bool) -> None:
    # One worker encodes in the stage's own process, where there is no child to kill: that is the driver's kill.
    kill = _kill_a_child if killed and workers > 1 else None
    made = films.make(Resources(workers=workers), kill)
    assert (made.clips, made.dataset) == (plain.clips, plain.dataset)
    assert made.items == plain.items
    assert all(count <= (kill is not None) for count in made.retried)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("killed", [False, True])
def test_ray_makes_the_same_bytes(films: Films, plain: Made, nodes: Nodes, workers: int, killed: bool) -> None:
    """Three nodes, of which the head does no work; a kill takes the node with the most workers."""
    lost: list[int] = []

    def kill_node() -> None:
        node = max(nodes.workers, key=_hosts)
        lost.append(_hosts(node))
        nodes.kill(node)

    resources = Resources(engine="ray", ray_address=nodes.address, workers=workers)
    made = films.make(resources, kill_node if killed else None, before=lambda: nodes.hold([2, 2]))
    assert (made.clips, made.dataset) == (plain.clips, plain.dataset)
    assert made.items == plain.items, "no item lost, none another"
    assert len(lost) == 2 * killed
    print(f"{workers} workers, on the killed nodes {lost}; items redone {made.retried}")
    for redone, hosts in zip(made.retried, lost or [0, 0], strict=True):
        assert redone <= hosts, "at most the item in flight of each worker that was lost"
