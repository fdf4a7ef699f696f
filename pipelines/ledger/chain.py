"""The event chain: appending, and the projections that events drive.

hash(n) = sha256(hash(n-1) + canonical JSON of row n without its hashes). Immutable rows are tied to the
chain by a digest in the event that announced them, so `verify_chain` sees a row changed behind our back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from m4v.core.canonical import canonical_json, digest_bytes, digest_json
from pipelines.ledger import schema
from pipelines.ledger.records import NodeOutcome, Status
from pipelines.ledger.schema_channels import Pin, PromotionRequest
from pipelines.ledger.types import iso, utc_now


def event_hash(previous: str, seq: int, at: datetime, kind: str, subject: str, payload: Mapping[str, Any]) -> str:
    body = {"seq": seq, "at": iso(at), "kind": kind, "subject": subject, "payload": payload}
    return digest_bytes(previous.encode() + canonical_json(body))


def row_digest(row: schema.Base, *leave_out: str) -> str:
    """Digest of a row's columns (less projections), times as ISO text."""
    values = {column.key: getattr(row, column.key) for column in row.__table__.columns if column.key not in leave_out}
    return digest_json({k: iso(v) if isinstance(v, datetime) else v for k, v in values.items()})


class Change(NamedTuple):
    """New values of a projection: of the row of `table` with primary key `key`."""

    table: type[schema.Base]
    key: dict[str, Any]
    values: dict[str, Any]


_ATTEMPT_BEGUN: dict[str, Any] = {
    "pid": None, "job": None, "status": Status.RUNNING, "exit_class": None, "message": "", "metrics": {},
    "finished_at": None, "run_id": None,
}  # fmt: skip
_PIPELINE_BEGUN: dict[str, Any] = {"status": Status.RUNNING, "exit_class": None, "message": "", "finished_at": None}
_PRESENT: dict[str, Any] = {"deletion": None, "deleted_at": None}
PROJECTIONS: dict[type[schema.Base], tuple[str, ...]] = {
    schema.Attempt: (*_ATTEMPT_BEGUN, "progress", "heartbeat_at"),
    schema.PipelineRun: tuple(_PIPELINE_BEGUN),
    schema.Artifact: ("uri", "deletion", "deleted_at"),
    PromotionRequest: ("status", "note", "closed_at"),
    Pin: ("released_by", "released_at"),
}


def change_of(kind: str, subject: str, payload: Mapping[str, Any], at: datetime) -> Change | None:
    """What an event means for a projection; None when it has no bearing on one."""
    match kind:
        case "attempt.begun":
            return Change(schema.Attempt, {"attempt_id": subject}, _ATTEMPT_BEGUN)
        case "attempt.launched":
            return Change(schema.Attempt, {"attempt_id": subject}, {k: payload[k] for k in ("pid", "job")})
        case "attempt.finished":
            kept = {k: payload[k] for k in ("status", "exit_class", "message", "metrics", "run_id")}
            return Change(schema.Attempt, {"attempt_id": subject}, {**kept, "finished_at": at})
        case "pipeline.begun":
            return Change(schema.PipelineRun, {"pipeline_run_id": subject}, _PIPELINE_BEGUN)
        case "pipeline.finished":
            kept = {k: payload[k] for k in ("status", "exit_class", "message")}
            return Change(schema.PipelineRun, {"pipeline_run_id": subject}, {**kept, "finished_at": at})
        case "pipeline.node":
            kept = {k: payload[k] for k in ("stage", "stage_key", "run_id", "attempt_id", "how", "reason")}
            key = {"pipeline_run_id": subject, "node_id": payload["node_id"]}
            return Change(schema.PipelineRunNode, key, {**kept, "how": NodeOutcome(kept["how"]), "recorded_at": at})
        case "artifact.recorded" | "artifact.located":
            key = {"artifact_id": subject, "kind": payload["kind"]}
            values = {"uri": payload["uri"]}
            return Change(schema.Artifact, key, values if kind == "artifact.located" else {**values, **_PRESENT})
        case "artifact.deleted" | "artifact.gone" | "artifact.restored":
            return _deletion_of(kind, subject, payload, at)
        case "promotion.requested":
            begun = {"status": "pending", "note": "", "closed_at": None}
            return Change(PromotionRequest, {"request_id": subject}, begun)
        case "promotion.closed":
            closed = {"status": payload["status"], "note": payload["note"], "closed_at": at}
            return Change(PromotionRequest, {"request_id": subject}, closed)
        case "artifact.pinned":
            return Change(Pin, {"pin_id": payload["pin_id"]}, {"released_by": None, "released_at": None})
        case "artifact.unpinned":
            return Change(Pin, {"pin_id": payload["pin_id"]}, {"released_by": payload["by"], "released_at": at})
    return None


def _deletion_of(kind: str, subject: str, payload: Mapping[str, Any], at: datetime) -> Change:
    values: dict[str, Any] = {"deletion": "done"}
    if kind == "artifact.deleted":
        values = {"deletion": "marked", "deleted_at": at}
    elif kind == "artifact.restored":
        values = _PRESENT
    return Change(schema.Artifact, {"artifact_id": subject, "kind": payload["kind"]}, values)


def record_event(session: Session, kind: str, subject: str, payload: Mapping[str, Any]) -> None:
    """Append an event and apply it to its projection; the caller is inside `Database.write()`."""
    session.flush()
    head = session.execute(select(schema.ChainHead.seq, schema.ChainHead.hash)).one()
    seq, at = head.seq + 1, utc_now()
    hashed = event_hash(head.hash, seq, at, kind, subject, payload)
    session.add(
        schema.Event(
            seq=seq, at=at, kind=kind, subject=subject, payload=dict(payload), prev_hash=head.hash, hash=hashed
        )
    )
    session.execute(update(schema.ChainHead).values(seq=seq, hash=hashed))
    session.flush()
    change = change_of(kind, subject, payload, at)
    if change is not None:
        apply_change(session, change)


def apply_change(session: Session, change: Change) -> None:
    where: list[ColumnElement[bool]] = [getattr(change.table, k) == v for k, v in change.key.items()]
    changed = session.execute(
        update(change.table).where(*where).values(**change.values), execution_options={"synchronize_session": "fetch"}
    )
    if changed.rowcount == 0 and change.table is schema.PipelineRunNode:  # type: ignore[attr-defined]
        session.add(schema.PipelineRunNode(**change.key, **change.values))
        session.flush()
