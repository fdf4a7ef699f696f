"""Artifacts and stage contexts for the evaluation tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m4v.core.artifacts import Artifact, ArtifactKind, build_manifest, write_manifest
from m4v.core.config import FrozenModel
from m4v.core.stage import InputRef, OutputRef, Resources, StageContext, StageRequest


def publish(directory: Path, kind: ArtifactKind) -> Artifact:
    """Give a filled directory its manifest."""
    manifest = build_manifest(directory, kind, {})
    write_manifest(directory, manifest)
    return Artifact(str(directory), manifest.artifact_id, kind, directory.parent / "cache")


def stage_request(
    root: Path, stage: str, config: FrozenModel | dict[str, Any], inputs: dict[str, Artifact],
    output: str, kind: ArtifactKind, *, seed: int = 0, resources: Resources | None = None, attempt: str = "1",
    attachments: dict[str, str] | None = None,
) -> StageRequest:  # fmt: skip
    return StageRequest(
        stage=stage, stage_version=1, function=f"eval.stages.{stage}:run", config_model="unused:Unused",
        stage_key="0" * 64, attempt_id=attempt, seed=seed,
        config=config.canonical() if isinstance(config, FrozenModel) else config,
        inputs=tuple(InputRef(name=n, kind=a.kind, artifact_id=a.id, uri=a.storage.uri) for n, a in inputs.items()),
        outputs=(OutputRef(name=output, kind=kind),),
        store_uri=str(root / "store"), work_dir=str(root / f"work-{attempt}"),
        state_uri=str(root / "state"), items_uri=str(root / "items"),
        resources=resources or Resources(ranks=1, threads=1, workers=1), attachments=attachments or {},
    )  # fmt: skip


def stage_context(*args: Any, **kwargs: Any) -> StageContext:
    request = stage_request(*args, **kwargs)
    Path(request.work_dir).mkdir(parents=True, exist_ok=True)
    return StageContext(request)
