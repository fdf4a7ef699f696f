"""Runs the real source and curate stages in a folder, as a stage process would, for the tests of curation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataprep.quarantine import QuarantineRow, read_quarantine
from dataprep.stages import curate, source
from m4v.core.artifacts import ArtifactKind, Manifest, build_manifest, write_manifest
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest

CHEAP = {
    "shots": {"detector": "histogram"},
    "signals": {"text": False, "nsfw": False, "quality": False, "key_frames": 1},
    # Pictures made of square tiles look like blocks.
    "filters": {"max_text": None, "max_nsfw": None, "max_brisque": None, "max_blockiness": None, "min_side": 32},
}


def context(
    work: Path,
    stage: str,
    config: dict[str, Any],
    inputs: tuple[InputRef, ...] = (),
    locations: dict[str, str] | None = None,
    resources: Resources | None = None,
    items: Path | None = None,
) -> StageContext:
    """A stage context whose folders lie below `work`."""
    kind = ArtifactKind.SOURCE if stage == "source" else ArtifactKind.CLIPS
    request = StageRequest(
        stage=stage, stage_version=1, function=f"dataprep.stages.{stage}:run", config_model="", stage_key="0" * 64,
        attempt_id="a", config=config, seed=0, inputs=inputs, outputs=(OutputRef(name=kind.value, kind=kind),),
        store_uri=str(work / "store"), work_dir=str(work), state_uri=str(work / "state"),
        items_uri=str(items or work / "items"), locations=locations or {}, resources=resources or Resources(),
    )  # fmt: skip
    return StageContext(request)


def _publish(made: StageContext, kind: ArtifactKind) -> Manifest:
    made.progress.close()
    directory = made.output(kind.value)
    manifest = build_manifest(directory, kind, made.summaries().get(kind.value, {}))
    write_manifest(directory, manifest)
    return manifest


def list_source(work: Path, name: str, location: Path | None, adapter: dict[str, Any]) -> InputRef:
    """Run the source stage; returns the artifact as an input for curate (renumber with `inputs`)."""
    places = {name: str(location)} if location else {}
    made = context(work, "source", {"name": name, "adapter": adapter}, locations=places)
    source.run(made)
    manifest = _publish(made, ArtifactKind.SOURCE)
    uri = str(made.output("source"))
    return InputRef(name=name, kind=ArtifactKind.SOURCE, artifact_id=manifest.artifact_id, uri=uri)


def inputs(*references: InputRef) -> tuple[InputRef, ...]:
    return tuple(r.model_copy(update={"name": f"source.{i}"}) for i, r in enumerate(references))


@dataclass
class Curated:
    directory: Path
    manifest: Manifest
    clips: list[dict[str, Any]]
    quarantine: list[QuarantineRow]
    funnel: list[dict[str, Any]]

    def kept(self) -> list[dict[str, Any]]:
        return [c for c in self.clips if c["kept"]]

    def reasons(self) -> dict[str, str]:
        return {Path(q.path).name: q.reason for q in self.quarantine}


def curated(made: StageContext) -> Curated:
    """Run the curate stage and read back its artifact."""
    curate.run(made)
    manifest = _publish(made, ArtifactKind.CLIPS)
    out = made.output("clips")
    return Curated(
        out, manifest, pq.read_table(out / "clips.parquet").to_pylist(), read_quarantine(out / "quarantine.parquet"),
        json.loads((out / "funnel.json").read_text()),
    )  # fmt: skip
