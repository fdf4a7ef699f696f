"""Pins, holds and deletions: what keeps an artifact's bytes, and the record that they went.

A deletion is decided and recorded first (`marked`), then the bytes go, then that is recorded (`done`). Whoever wants
the artifact meanwhile finds it marked: a decision and a use never pass each other, both hold the chain's lock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import PROJECTIONS, record_event, row_digest
from pipelines.ledger.channel_records import ArtifactDeleted, PinRow
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.reach_facts import ReachFacts, load_reach_facts
from pipelines.ledger.records import ArtifactRow, Status
from pipelines.ledger.registry import usable
from pipelines.ledger.runs import artifact_row
from pipelines.ledger.schema_channels import Hold, Pin
from pipelines.ledger.types import utc_now
from pipelines.ledger.verifications import VERIFIED

ArtifactKey = tuple[str, str]  # (artifact id, kind)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Deletion:
    """An artifact whose bytes shall go, and why nothing keeps them."""

    artifact_id: str
    kind: str
    reason: str


class RetentionOps:
    """The pin, hold and deletion verbs of a Ledger."""

    _db: Database

    def pin(self, artifact_id: str, *, by: str, reason: str) -> PinRow:
        """Keep an artifact and what it was made from. Raises what `move_channel` raises for one that cannot be
        used."""
        with self._db.write() as session:
            artifact = usable(session, artifact_id)
            row = Pin(
                pin_id=new_id(),
                artifact_id=artifact.artifact_id,
                kind=artifact.kind,
                reason=reason,
                pinned_by=by,
                pinned_at=utc_now(),
                released_by=None,
                released_at=None,
            )
            session.add(row)
            digest = row_digest(row, *PROJECTIONS[Pin])
            pinned = {"pin_id": row.pin_id, "kind": artifact.kind, "by": by, "reason": reason, "row": digest}
            record_event(session, "artifact.pinned", artifact.artifact_id, pinned)
            return _pin_row(row)

    def unpin(self, artifact_id: str, *, by: str) -> list[PinRow]:
        """Release every pin of an artifact; raises InputError when there is none."""
        with self._db.write() as session:
            rows = session.scalars(_pins().where(Pin.artifact_id == artifact_id)).all()
            if not rows:
                raise InputError("the artifact is not pinned", value=artifact_id, next_step="m4v artifacts list")
            for row in rows:
                record_event(session, "artifact.unpinned", artifact_id, {"pin_id": row.pin_id, "by": by})
                session.refresh(row)
            return [_pin_row(row) for row in rows]

    def pins(self, artifact_id: str | None = None) -> list[PinRow]:
        """Pins that hold, newest first."""
        query = _pins() if artifact_id is None else _pins().where(Pin.artifact_id == artifact_id)
        with self._db.read() as session:
            return [_pin_row(row) for row in session.scalars(query)]

    def hold(self, pipeline_run_id: str, artifacts: Iterable[ArtifactKey], *, publishing: bool = False) -> None:
        """Keep artifacts for as long as a pipeline run lives: its inputs, cache hits and, when `publishing`, outputs
        that it is about to bring to the store.

        Raises ArtifactDeleted for one whose bytes are going, and, unless publishing, for one whose bytes are gone.
        """
        with self._db.write() as session:
            for artifact_id, kind in artifacts:
                row = session.get(schema.Artifact, (artifact_id, str(kind)))
                going = row is not None and row.deletion is not None
                if row is not None and going and not (publishing and row.deletion == "done"):
                    raise ArtifactDeleted(artifact_id, str(kind), row.deleted_at)
                session.merge(Hold(pipeline_run_id=pipeline_run_id, artifact_id=artifact_id, kind=str(kind)))

    def reach_facts(self, runs: int, resumable_since: datetime | None = None) -> ReachFacts:
        """What reachability is judged on, with the newest `runs` pipeline runs of every recipe and interrupted ones
        that began after `resumable_since`."""
        with self._db.read() as session:
            return load_reach_facts(session, runs, resumable_since)

    def mark_deleted(
        self,
        runs: int,
        judge: Callable[[ReachFacts], Sequence[Deletion]],
        *,
        by: str,
        policy: str,
        resumable_since: datetime | None = None,
    ) -> list[ArtifactRow]:
        """Decide which artifacts go and record that, in one transaction; returns their rows. Their bytes still lie
        there: `deleted` follows when they are gone.

        `judge` sees the facts as no other writer can change them any more; `policy` names the rule in the event.
        """
        with self._db.write() as session:
            _drop_old_holds(session)
            return _mark(session, judge(load_reach_facts(session, runs, resumable_since)), by, policy)

    def mark(self, doomed: Iterable[Deletion], *, by: str, policy: str) -> list[ArtifactRow]:
        """Record that artifacts go, whatever needs them; returns the rows of those that were there. For a takedown:
        what is decided already asks nothing of the graph."""
        with self._db.write() as session:
            return _mark(session, doomed, by, policy)

    def marked(self) -> list[ArtifactRow]:
        """Artifacts whose deletion was decided and may not be finished."""
        query = select(schema.Artifact).where(schema.Artifact.deletion == "marked")
        with self._db.read() as session:
            return [artifact_row(r) for r in session.scalars(query.order_by(schema.Artifact.artifact_id))]

    def cited_files(self, digests: Collection[str]) -> set[str]:
        """Which of these provenance files the rows of runs and verdicts cite; reads all of them, in little memory."""
        wanted, found = frozenset(digests), set[str]()
        if not wanted:
            return found
        told = schema.Event.kind.in_(("pipeline.begun", VERIFIED))
        with self._db.read() as session:
            for query in (select(schema.StageRun.environment), select(schema.Event.payload).where(told)):
                for value in session.scalars(query.execution_options(yield_per=1000)):
                    found |= wanted.intersection(_DIGEST.findall(json.dumps(value)))
        return found

    def deleted(self, artifacts: Iterable[ArtifactKey]) -> None:
        """The bytes of marked artifacts are gone; others are left as they are."""
        with self._db.write() as session:
            for artifact_id, kind in artifacts:
                row = session.get(schema.Artifact, (artifact_id, str(kind)))
                if row is not None and row.deletion == "marked":
                    record_event(session, "artifact.gone", artifact_id, {"kind": str(kind)})


def _mark(session: Session, doomed: Iterable[Deletion], by: str, policy: str) -> list[ArtifactRow]:
    rows = []
    for one in doomed:
        row = session.get(schema.Artifact, (one.artifact_id, one.kind))
        if row is None or row.deletion is not None:
            continue
        facts = {"kind": row.kind, "uri": row.uri, "size_bytes": row.size_bytes, "by": by, "policy": policy}
        record_event(session, "artifact.deleted", row.artifact_id, {**facts, "reason": one.reason})
        session.refresh(row)
        rows.append(artifact_row(row))
    return rows


def _pins() -> Select[tuple[Pin]]:
    return select(Pin).where(Pin.released_at.is_(None)).order_by(Pin.pinned_at.desc(), Pin.pin_id.desc())


def _pin_row(row: Pin) -> PinRow:
    values = {f: getattr(row, f) for f in PinRow.__dataclass_fields__}
    return PinRow(**{**values, "kind": ArtifactKind(row.kind)})


def _drop_old_holds(session: Session) -> None:
    """Holds of pipeline runs that have ended."""
    ended = select(schema.PipelineRun.pipeline_run_id).where(schema.PipelineRun.status != Status.RUNNING)
    session.execute(
        delete(Hold).where(Hold.pipeline_run_id.in_(ended)), execution_options={"synchronize_session": False}
    )
