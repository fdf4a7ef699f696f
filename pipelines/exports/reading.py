"""What exports read besides ledger rows: an artifact's manifest and small documents, from the store."""

from __future__ import annotations

import json
from typing import Any

from m4v.core.artifacts import MANIFEST, Manifest, read_manifest
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.ledger import ArtifactRow, Ledger, PipelineRunRow, RunRow


def artifact_of(ledger: Ledger, identity: str, *kinds: str) -> ArtifactRow:
    """The artifact with this id or prefix; of a stage run, its only output of one of `kinds`.

    Raises InputError when there is none of these kinds (any, when none is given).
    """
    row = ledger.resolve(identity)
    if isinstance(row, RunRow):
        outputs = [p for p in row.outputs if not kinds or str(p.kind) in kinds]
        if len(outputs) != 1:
            made = ", ".join(f"{p.name} {p.kind} {p.artifact_id[:12]}" for p in row.outputs)
            raise InputError("the run has not one output to export", value=identity, next_step=f"choose of: {made}")
        row = ledger.artifact(outputs[0].artifact_id, outputs[0].kind)
    if not isinstance(row, ArtifactRow):
        raise InputError("this is the id of no artifact", value=identity, next_step=_next_step(row))
    if kinds and str(row.kind) not in kinds:
        raise InputError(
            f"this export is for {' or '.join(kinds)}, and the artifact is {row.kind}", value=row.artifact_id[:12]
        )
    return row


def _next_step(row: object) -> str:
    identity = row.pipeline_run_id if isinstance(row, PipelineRunRow) else getattr(row, "run_id", None) or ""
    return f"m4v runs show {identity}".rstrip()


def manifest_of(row: ArtifactRow) -> Manifest | None:
    """The artifact's list of files; None when its bytes are gone (deleted, or the store elsewhere)."""
    storage = Storage(row.uri)
    if not storage.exists(MANIFEST):
        return None
    found = read_manifest(storage)
    if found.artifact_id != row.artifact_id:
        raise DataIntegrityError("manifest is of another artifact", value=found.artifact_id, where=storage.uri)
    return found


def document(row: ArtifactRow, name: str) -> Any:
    """A JSON file of the artifact, None when there is none; raises DataIntegrityError when it does not parse."""
    storage = Storage(row.uri)
    if not storage.exists(name):
        return None
    try:
        return json.loads(storage.read_bytes(name))
    except ValueError as error:
        raise DataIntegrityError(f"file does not parse: {error}", value=name, where=storage.uri) from None


def text_lines(row: ArtifactRow, name: str) -> list[Any]:
    """The JSON values of a JSON Lines file of the artifact; none when the file is gone."""
    storage = Storage(row.uri)
    if not storage.exists(name):
        return []
    try:
        return [json.loads(line) for line in storage.read_bytes(name).splitlines() if line.strip()]
    except ValueError as error:
        raise DataIntegrityError(f"file does not parse: {error}", value=name, where=storage.uri) from None
