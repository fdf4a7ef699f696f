"""Runs the real source stage on a folder and publishes its artifact, for the tests of adapters."""

from __future__ import annotations

from pathlib import Path

from dataprep.config import SourceConfig
from dataprep.stages.source import run
from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.stage import OutputRef, StageContext, StageRequest


def stage_context(work: Path, adapter: dict[str, object], location: Path | None, name: str = "mine") -> StageContext:
    config = SourceConfig.model_validate({"name": name, "adapter": adapter})
    return StageContext(
        StageRequest(
            stage="source", stage_version=1, function="dataprep.stages.source:run",
            config_model="dataprep.config:SourceConfig", stage_key="k", attempt_id="a", config=config.canonical(),
            seed=0, inputs=(), outputs=(OutputRef(name="source", kind=ArtifactKind.SOURCE),),
            store_uri=str(work / "store"), work_dir=str(work), state_uri=str(work / "state"),
            items_uri=str(work / "items"), locations={name: str(location)} if location else {},
        )
    )  # fmt: skip


def publish(work: Path, adapter: dict[str, object], location: Path | None = None) -> Artifact:
    context = stage_context(work, adapter, location)
    run(context)
    context.progress.close()
    out = work / "staging" / "source"
    manifest = build_manifest(out, ArtifactKind.SOURCE, context.summaries()["source"])
    write_manifest(out, manifest)
    return Artifact(str(out), manifest.artifact_id, ArtifactKind.SOURCE, work / "cache")
