"""Events: reading them, proving the chain, rebuilding projections, feeding sinks."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.errors import DataIntegrityError, InputError
from pipelines.ledger import schema
from pipelines.ledger.audit import check_chain, check_rows, scratch_database, stale_projections
from pipelines.ledger.chain import apply_change, record_event
from pipelines.ledger.database import Database
from pipelines.ledger.records import ChainReport, EventRow, OutboxRow
from pipelines.ledger.types import utc_now

_EVENT_FIELDS = tuple(EventRow.__dataclass_fields__)


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
        """Recompute the whole chain and hold every immutable row against the event that announced it.

        Memory is bounded; what is compared lies meanwhile in the temporary directory (about the ledger's size).
        """
        with self._db.read() as session, scratch_database() as scratch:
            problems: list[str] = []
            seq, head = check_chain(session, scratch, problems)
            problems += check_rows(session, scratch)
            changes = [] if problems else stale_projections(session, scratch)
            stale = [f"{change.table.__tablename__} {' '.join(change.key.values())}" for change in changes]
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
        with self._db.write() as session, scratch_database() as scratch:
            stale = list(stale_projections(session, scratch))
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
            _move_outbox(session, sink, seq)

    def skip_delivery(self, sink: str, seq: int, *, by: str) -> None:
        """Pass over event `seq`, the sink's next one, for good; the chain says who did.

        Raises InputError for another event: nothing is passed over unseen.
        """
        with self._db.write() as session:
            row = session.get(schema.Outbox, sink)
            following = (row.delivered_seq if row else 0) + 1
            if seq != following or session.get(schema.Event, seq) is None:
                raise InputError(
                    "only the event that a sink stopped at can be skipped",
                    value=seq,
                    where=f"sink {sink}",
                    next_step=f"its next event is {following}; m4v ledger sinks",
                )
            record_event(session, "sink.skipped", sink, {"seq": seq, "by": by})
            _move_outbox(session, sink, seq)


def _move_outbox(session: Session, sink: str, seq: int) -> None:
    row = session.get(schema.Outbox, sink)
    if row is None:
        row = schema.Outbox(sink=sink, delivered_seq=0, delivered_at=utc_now())
        session.add(row)
    if seq > row.delivered_seq:
        row.delivered_seq, row.delivered_at = seq, utc_now()


def _event_row(event: schema.Event) -> EventRow:
    return EventRow(**{f: getattr(event, f) for f in _EVENT_FIELDS})
