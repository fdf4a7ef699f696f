"""What happened to attempts and nodes while somebody watched: attached, started, hung, a node blamed or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from m4v.core.canonical import plain_json
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event
from pipelines.ledger.database import Database
from pipelines.ledger.records import EventRow

ATTACHED, SUBMITTED, STARTED, HUNG = "attempt.attached", "attempt.submitted", "attempt.started", "attempt.hung"
EXCLUDED, NODE_FAILED = "attempt.nodes-excluded", "node.failed"
_OF_ATTEMPTS = (ATTACHED, SUBMITTED, STARTED, HUNG, EXCLUDED)
_FIELDS = tuple(EventRow.__dataclass_fields__)
_MANY = 500  # subjects of one question


class SupervisionOps:
    """The supervision verbs of a Ledger."""

    _db: Database

    def record_supervision(self, attempt_id: str, kind: str, facts: Mapping[str, Any]) -> None:
        """Record an event of an attempt; raises InputError for an unknown kind or attempt."""
        if kind not in _OF_ATTEMPTS:
            raise InputError("supervision knows no such event", value=kind)
        with self._db.write() as session:
            if session.get(schema.Attempt, attempt_id) is None:
                raise InputError("ledger has no such attempt", value=attempt_id, next_step="m4v runs list")
            record_event(session, kind, attempt_id, {key: plain_json(value) for key, value in facts.items()})

    def supervision(self, attempt_ids: Sequence[str]) -> list[EventRow]:
        """The supervision events of attempts, and the node failures that they caused, oldest first."""
        found: list[EventRow] = []
        with self._db.read() as session:
            for place in range(0, len(attempt_ids), _MANY):
                subjects = attempt_ids[place : place + _MANY]
                query = select(schema.Event).where(schema.Event.subject.in_(subjects))
                rows = session.scalars(query.where(schema.Event.kind.in_(_OF_ATTEMPTS)))
                found += [EventRow(**{f: getattr(row, f) for f in _FIELDS}) for row in rows]
        return sorted(found, key=lambda event: event.seq)

    def record_node_failure(self, launcher: str, node: str, attempt_id: str, reason: str) -> None:
        """Record that an attempt failed because of a node."""
        with self._db.write() as session:
            record_event(session, NODE_FAILED, _subject(launcher, node), {"attempt_id": attempt_id, "reason": reason})

    def node_failures(self, launcher: str, days: float) -> dict[str, list[str]]:
        """Reasons, oldest first, of every node that failed within the last `days`."""
        prefix = _subject(launcher, "")
        found: dict[str, list[str]] = {}
        with self._db.read() as session:
            since = self._db.now(session) - timedelta(days=days)
            query = select(schema.Event).where(schema.Event.subject.startswith(prefix, autoescape=True))
            query = query.where(schema.Event.kind == NODE_FAILED, schema.Event.at >= since)
            for row in session.scalars(query.order_by(schema.Event.seq)):
                found.setdefault(row.subject.removeprefix(prefix), []).append(str(row.payload["reason"]))
        return found


def _subject(launcher: str, node: str) -> str:
    return f"node:{launcher}/{node}"
