"""The part of a launched request that a ledger row does not hold elsewhere, so that a stage can be executed again
from its row alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from m4v.core.config import FrozenModel
from m4v.core.stage import Resources, StageRequest, write_json
from pipelines.provenance.blobs import BlobRef, BlobStore
from pipelines.provenance.code import CodeState

RECORD = "provenance.json"


class RecordedRequest(FrozenModel):
    """How a stage was launched. `config` is the whole one: a key's leaves out how a thing is done. `inputs` are their
    names in the order in which the stage was given them, `attachments` are kept by digest."""

    function: str
    config_model: str
    config: dict[str, object]
    resources: Resources
    inputs: tuple[str, ...] = ()
    locations: dict[str, str] = {}
    attachments: dict[str, BlobRef] = {}
    lock_file: str | None = None
    lock_digest: str | None = None


class LaunchRecord(FrozenModel):
    """`provenance.json` of an attempt: its end may be committed by a later process, with other code around it."""

    code: CodeState
    request: RecordedRequest


def recorded_request(request: StageRequest, blobs: BlobStore) -> RecordedRequest:
    """What to record of a request; its attachments are copied to `blobs`."""
    return RecordedRequest(
        function=request.function,
        config_model=request.config_model,
        config=request.config,
        resources=request.resources,
        inputs=tuple(reference.name for reference in request.inputs),
        locations=request.locations,
        attachments={name: blobs.put(Path(path).read_bytes()) for name, path in request.attachments.items()},
        lock_file=request.lock_file,
        lock_digest=request.lock_digest,
    )


def write_record(work_dir: Path, code: CodeState, request: RecordedRequest) -> None:
    write_json(work_dir / RECORD, LaunchRecord(code=code, request=request))


def read_record(work_dir: Path) -> dict[str, object]:
    """`code` and `request` as a run's environment holds them; empty for an attempt that left no record."""
    try:
        record = LaunchRecord.model_validate_json((work_dir / RECORD).read_bytes())
    except (OSError, ValidationError):
        return {}
    return dict(record.canonical())
