"""Events: reading them, proving the chain, rebuilding projections, feeding sinks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.errors import DataIntegrityError
from pipelines.ledger import schema
from pipelines.ledger.chain import PROJECTIONS, Change, apply_change, change_of, event_hash, row_digest
from pipelines.ledger.database import Database
from pipelines.ledger.records import ChainReport, EventRow, OutboxRow
from pipelines.ledger.schema_channels import Approval, Pin, PromotionRequest
from pipelines.ledger.schema_takedown import DrainRequest, TakedownClips, TakedownStep, Withdrawal
from pipelines.ledger.types import utc_now

_BATCH = 1000
_EVENT_FIELDS = tuple(EventRow.__dataclass_fields__)
# Which rows an event answers for, and where in its payload their digests stand.
_WITNESSED: dict[type[schema.Base], str] = {
    schema.Artifact: "artifact.recorded",
    schema.Attempt: "attempt.begun",
    schema.StageRun: "run.committed",
    schema.PipelineRun: "pipeline.begun",
    schema.Reuse: "pipeline.node",
    schema.Channel: "channel.moved",
    schema.Takedown: "takedown.requested",
    PromotionRequest: "promotion.requested",
    Approval: "promotion.decided",
    Pin: "artifact.pinned",
    DrainRequest: "drain.requested",
    TakedownClips: "takedown.clips",
    TakedownStep: "takedown.step",
    Withdrawal: "artifact.withdrawn",
}
RowKey = tuple[str, ...]


class HistoryOps:
    """The event verbs of a Ledger."""

    _db: Database

    def events(self, *, subject: str | None = None, after: int = 0, limit: int | None = 100) -> list[EventRow]:
        """Events with `seq` above `after`, oldest first."""
        query = select(schema.Event).where(schema.Event.seq > after).order_by(schema.Event.seq)
        if subject is not None:
            query = query.where(schema.Event.subject == subject)
        with self._db.read() as session:
            return [_event_row(e) for e in session.scalars(query.limit(limit))]

    def verify_chain(self) -> ChainReport:
        """Recompute the whole chain and hold every immutable row against the event that announced it."""
        with self._db.read() as session:
            problems: list[str] = []
            witnesses: dict[RowKey, str] = {}
            seq, head = _walk_chain(session, problems, witnesses)
            last = session.execute(select(schema.ChainHead.seq, schema.ChainHead.hash)).one()
            if (last.seq, last.hash) != (seq, head):
                problems.append(f"chain ends at event {seq}, its head says {last.seq}")
            problems += _changed_rows(session, witnesses)
            stale = [] if problems else [f"{c.table.__tablename__} {' '.join(c.key.values())}" for c in _stale(session)]
            return ChainReport(events=seq, head=head, problems=tuple(problems), stale=tuple(stale))

    def rebuild(self) -> int:
        """Make every projection again from the events; returns how many rows changed.

        Raises DataIntegrityError when the chain itself does not verify.
        """
        report = self.verify_chain()
        if not report.ok:
            raise DataIntegrityError(
                "event chain does not verify", value=report.problems[0], next_step="restore a backup"
            )
        with self._db.write() as session:
            stale = list(_stale(session))
            for change in stale:
                apply_change(session, change)
            return len(stale)

    def undelivered(self, sink: str, limit: int = 100) -> list[EventRow]:
        """The next events that a sink has not confirmed."""
        with self._db.read() as session:
            row = session.get(schema.Outbox, sink)
        return self.events(after=row.delivered_seq if row else 0, limit=limit)

    def outbox(self, sink: str) -> OutboxRow:
        """How far a sink has come, and how many events wait for it."""
        with self._db.read() as session:
            row = session.get(schema.Outbox, sink)
            head = session.execute(select(schema.ChainHead.seq)).scalar_one()
        return OutboxRow(
            sink=sink,
            delivered_seq=row.delivered_seq if row else 0,
            delivered_at=row.delivered_at if row else None,
            waiting=head - (row.delivered_seq if row else 0),
        )

    def delivered(self, sink: str, seq: int) -> None:
        """A sink has everything up to `seq`; never moves back."""
        with self._db.write() as session:
            row = session.get(schema.Outbox, sink)
            if row is None:
                row = schema.Outbox(sink=sink, delivered_seq=0, delivered_at=utc_now())
                session.add(row)
            if seq > row.delivered_seq:
                row.delivered_seq, row.delivered_at = seq, utc_now()


def _event_row(event: schema.Event) -> EventRow:
    return EventRow(**{f: getattr(event, f) for f in _EVENT_FIELDS})


def _all_events(session: Session) -> Iterator[schema.Event]:
    query = select(schema.Event).order_by(schema.Event.seq).execution_options(yield_per=_BATCH)
    yield from session.scalars(query)


def _walk_chain(session: Session, problems: list[str], witnesses: dict[RowKey, str]) -> tuple[int, str]:
    """Check link after link; only events that are as written count as witnesses. Returns the last link."""
    seq, head = 0, schema.GENESIS
    try:
        for event in _all_events(session):
            expected = event_hash(head, seq + 1, event.at, event.kind, event.subject, event.payload)
            if event.seq != seq + 1:
                problems.append(f"events {seq + 1} to {event.seq - 1} are missing")
            elif event.prev_hash != head or event.hash != expected:
                problems.append(f"event {event.seq} ({event.kind}) was changed")
            else:
                witnesses.update(_witnessed_by(event))
            seq, head = event.seq, event.hash
    except ValueError as error:  # JSON or a time that does not parse
        problems.append(f"an event soon after {seq} cannot be read: {error}")
    return seq, head


def _witnessed_by(event: schema.Event) -> Iterator[tuple[RowKey, str]]:
    for table, kind in _WITNESSED.items():
        if event.kind != kind:
            continue
        payload: Any = event.payload
        match kind:
            case "artifact.recorded" | "artifact.withdrawn":
                yield (table.__tablename__, event.subject, payload["kind"]), payload["row"]
            case "pipeline.node":
                if "reuse" in payload:
                    yield (table.__tablename__, payload["reuse"]["reuse_id"]), payload["reuse"]["row"]
            case "takedown.clips":
                yield (table.__tablename__, event.subject, str(payload["number"])), payload["row"]
            case "takedown.step":
                yield (table.__tablename__, event.subject, payload["step"], payload["item"]), payload["row"]
            case "channel.moved":
                yield (table.__tablename__, event.subject, str(payload["seq"])), payload["row"]
            case "promotion.decided":
                yield (table.__tablename__, event.subject, payload["actor"]), payload["row"]
            case "artifact.pinned":
                yield (table.__tablename__, payload["pin_id"]), payload["row"]
            case _:
                yield (table.__tablename__, event.subject), payload["row"]
    if event.kind == "run.committed":
        for table, ports in ((schema.RunInput, "inputs"), (schema.RunOutput, "outputs")):
            for name, (artifact_id, artifact_kind) in event.payload[ports].items():
                yield (table.__tablename__, event.subject, name), f"{artifact_id} {artifact_kind}"


def _changed_rows(session: Session, witnesses: dict[RowKey, str]) -> Iterator[str]:
    """Rows that differ from their event, have none, or are gone."""
    missing = dict(witnesses)
    tables: tuple[type[schema.Base], ...] = (*_WITNESSED, schema.RunInput, schema.RunOutput)
    for table in tables:
        try:
            rows = session.scalars(select(table)).all()
        except ValueError as error:
            yield f"a row of {table.__tablename__} cannot be read: {error}"
            continue
        for row in rows:
            key = (table.__tablename__, *(str(getattr(row, c.key)) for c in table.__table__.primary_key))
            expected = missing.pop(key, None)
            if isinstance(row, schema.RunInput | schema.RunOutput):
                found = f"{row.artifact_id} {row.kind}"
            else:
                found = row_digest(row, *PROJECTIONS.get(table, ()))
            if expected is None:
                yield f"row {' '.join(key)} has no event"
            elif expected != found:
                yield f"row {' '.join(key)} was changed"
    yield from (f"row {' '.join(key)} is missing" for key in missing)


def _stale(session: Session) -> Iterator[Change]:
    """Projections that differ from what the events say, as the change that mends each."""
    wanted: dict[tuple[type[schema.Base], RowKey], Change] = {}
    for event in _all_events(session):
        change = change_of(event.kind, event.subject, event.payload, event.at)
        if change is not None:
            place = (change.table, tuple(change.key.values()))
            values = {**wanted[place].values, **change.values} if place in wanted else change.values
            wanted[place] = Change(change.table, change.key, values)
    rows: dict[tuple[type[schema.Base], RowKey], schema.Base] = {}
    for table in {change.table for change in wanted.values()}:
        for row in session.scalars(select(table)):
            rows[table, tuple(str(getattr(row, c.key)) for c in table.__table__.primary_key)] = row
    for place, change in wanted.items():
        found = rows.get(place)
        if found is None or any(getattr(found, k) != v for k, v in change.values.items()):
            yield change
