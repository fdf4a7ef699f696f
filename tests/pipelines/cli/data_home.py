"""A home in which the real source, curate and encode stages ran on a small folder, with all of it in the ledger."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "dataprep"))

import nasty
from curation_runs import CHEAP, context, inputs, list_source

from dataprep.config import CurateConfig
from dataprep.stages import curate, encode
from m4v.core.artifacts import ArtifactKind, build_manifest, read_manifest, write_manifest
from m4v.core.config import parse
from m4v.core.errors import ExitClass
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest
from m4v.core.storage import Storage
from m4v.video_io import encode_mp4
from pipelines.ledger import Ledger, NewRun, NodeOutcome
from pipelines.store import ArtifactRecord

HOSTILE = "a <script>alert('x')</script> & \"quoted\" square"
CONFIG: dict[str, Any] = {
    **CHEAP,
    "signals": {**CHEAP["signals"], "embedding": True},
    "filters": {**CHEAP["filters"], "min_motion": 0.1, "max_blockiness": None},  # the pictures are tiles
    "missing_caption": "drop",
}
FOLDER = {"kind": "folder", "require_captions": False, "licence": "CC0-1.0"}
SHAPES = {
    "kind": "synthetic", "count": 5, "stills": 2, "frames": 17, "size": [64, 64], "backgrounds": ["white", "black"],
    "motions": ["right", "still"],
}  # fmt: skip


def wild_folder(folder: Path) -> Path:
    """Copies of several sizes, lengths and qualities, clips that rules drop, and files that nobody can use.

    `large.mp4` is the short, large copy for which `whole.mp4` goes: without it the longer one stays.
    """
    pictures = nasty.frames(48, 96, 128)
    nasty.with_caption(folder / "whole.mp4", encode_mp4(pictures, 24), HOSTILE)
    nasty.with_caption(folder / "large.mp4", encode_mp4(np.kron(pictures[:20], np.ones((1, 2, 2, 1), np.uint8)), 24))
    nasty.with_caption(folder / "same.mp4", (folder / "whole.mp4").read_bytes())
    nasty.with_caption(folder / "coarse.mp4", encode_mp4(pictures, 24, crf=30))
    nasty.with_caption(folder / "cut.mp4", encode_mp4(pictures[8:40], 24, crf=20))
    nasty.good_clip(folder / "other.mp4", count=48, height=96, width=128, seed=77)
    nasty.good_clip(folder / "brief.mp4", count=10, height=96, width=128, seed=5)
    nasty.with_caption(folder / "still.mp4", encode_mp4(np.repeat(nasty.frames(2, 64, 96, 9)[:1], 24, axis=0), 24))
    nasty.good_clip(folder / "mute.mp4", caption=None, count=24, seed=3)
    nasty.empty_file(folder / "empty.mp4")
    nasty.text_as_mp4(folder / "page.mp4")
    nasty.corrupt_mp4(folder / "noise.mp4")
    return folder


@dataclass
class DataHome:
    """`ids`: artifact and run ids by name (`clips`, `dataset`, `source.wild`, `curate run`, `pipeline`)."""

    home: Path
    work: Path
    folder: Path
    sources: tuple[InputRef, ...]
    ids: dict[str, str]

    def curate(self, name: str, config: dict[str, Any]) -> Path:
        """Really run the curate stage with another config, measurements shared; its output folder."""
        made = self._context(name, config)
        curate.run(made)
        made.progress.close()
        return made.output("clips")

    def _context(self, name: str, config: dict[str, Any]) -> StageContext:
        places = {"wild": str(self.folder)}
        return context(self.work / name, "curate", config, inputs(*self.sources), places, items=self.work / "items")


def build(root: Path) -> DataHome:
    folder = wild_folder(root / "wild")
    sources = (
        list_source(root / "listed-wild", "wild", folder, FOLDER),
        list_source(root / "listed-shapes", "shapes", None, SHAPES),
    )
    home = DataHome(root / "home", root, folder, sources, {})
    home.home.mkdir()
    clips = _publish(home.curate("curated", CONFIG), ArtifactKind.CLIPS)
    dataset = _publish(_encode(home, clips), ArtifactKind.DATASET)
    with Ledger.open(f"sqlite:///{home.home / 'ledger.db'}") as ledger:
        pipeline = ledger.begin_pipeline_run("mine", {"name": "mine", "seed": 7}, trigger="cli")
        home.ids |= {"pipeline": pipeline, "clips": clips.artifact_id, "dataset": dataset.artifact_id}
        records = [_record(source) for source in sources]
        for name, record in zip(("wild", "shapes"), records, strict=True):
            home.ids[f"source.{name}"] = record.artifact_id
            _commit(ledger, home, f"source.{name}", "source", {"name": name}, [], {"source": record})
        config = parse(CurateConfig, CONFIG, "test").canonical()
        _commit(ledger, home, "curate", "curate", config, sources, {"clips": clips})
        _commit(ledger, home, "encode", "encode", {}, (_reference("clips", clips), *sources), {"dataset": dataset})
        ledger.finish_pipeline_run(pipeline, ExitClass.OK, "")
    return home


def shared(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataHome:
    """One for all workers and files: add artifacts of your own to its ledger, change nothing else."""
    place = made_once("data", lambda folder: (folder / "made").write_bytes(pickle.dumps(build(folder))))
    found: DataHome = pickle.loads((place / "made").read_bytes())
    return found


def _encode(home: DataHome, clips: ArtifactRecord) -> Path:
    work = home.work / "encoded"
    config = {"buckets": {"frames": [9, 17], "sizes": [[64, 64]]}, "text_encoder": {"slots": 8}, "reconstructions": 2}
    made = StageContext(StageRequest(
        stage="encode", stage_version=1, function="dataprep.stages.encode:run", config_model="", stage_key="e" * 64,
        attempt_id="a", config=config, seed=0,
        inputs=(_reference("clips", clips), *inputs(*home.sources)),
        outputs=(OutputRef(name="dataset", kind=ArtifactKind.DATASET),), store_uri=str(work / "store"),
        work_dir=str(work), state_uri=str(work / "state"), items_uri=str(home.work / "items"),
        locations={"wild": str(home.folder)}, resources=Resources(),
    ))  # fmt: skip
    encode.run(made)
    made.progress.close()
    return made.output("dataset")


def _reference(name: str, record: ArtifactRecord) -> InputRef:
    return InputRef(name=name, kind=record.kind, artifact_id=record.artifact_id, uri=record.uri)


def _publish(directory: Path, kind: ArtifactKind) -> ArtifactRecord:
    write_manifest(directory, build_manifest(directory, kind, {}))
    return _record(InputRef(name="x", kind=kind, artifact_id="", uri=str(directory)))


def _record(reference: InputRef) -> ArtifactRecord:
    manifest = read_manifest(Storage(reference.uri))
    return ArtifactRecord(
        artifact_id=manifest.artifact_id, kind=manifest.kind, uri=reference.uri, size_bytes=manifest.size_bytes,
        files=len(manifest.files), summary=manifest.summary,
    )  # fmt: skip


def _commit(
    ledger: Ledger, home: DataHome, node: str, stage: str, config: Any, sources: Any, outputs: dict[str, ArtifactRecord]
) -> None:
    claim = ledger.claim(f"{node:k<64}", "tester")
    attempt = ledger.begin_attempt(
        claim, stage=stage, work_dir="work", log_path="log", pipeline_run_id=home.ids["pipeline"], node_id=node
    )
    facts = NewRun(
        stage=stage, stage_version=1, stage_key=f"{node:k<64}", key_record={"stage": stage}, config=config,
        code_digest="c" * 64, seed=7,
    )  # fmt: skip
    run = ledger.commit_run(claim, attempt, facts, list(sources), outputs, {})
    ledger.release(claim)
    ledger.record_node(home.ids["pipeline"], node, stage=stage, how=NodeOutcome.RAN, reason="first run", run_id=run)
    home.ids |= {f"{node} run": run, f"{node} attempt": attempt}


def publish_beside(home: DataHome, directory: Path) -> str:
    """Record a folder as clips that no run of this home made; its artifact id."""
    record = _publish(directory, ArtifactKind.CLIPS)
    with Ledger.open(f"sqlite:///{home.home / 'ledger.db'}") as ledger:
        ledger.import_artifact(record)
    return record.artifact_id
