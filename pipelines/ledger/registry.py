"""Channels (which artifact is promoted, by compare-and-swap) and takedown requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import plain_json
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event, row_digest
from pipelines.ledger.channel_records import ArtifactDeleted
from pipelines.ledger.database import Database
from pipelines.ledger.records import ChannelMoved, ChannelRow, Withdrawn
from pipelines.ledger.schema_takedown import Withdrawal
from pipelines.ledger.takedown_records import TakedownRow
from pipelines.ledger.types import utc_now


class RegistryOps:
    """The channel and takedown verbs of a Ledger."""

    _db: Database

    def move_channel(
        self,
        name: str,
        artifact_id: str,
        *,
        expected: str | None,
        moved_by: str,
        reason: str,
        facts: Mapping[str, Any] | None = None,
    ) -> ChannelRow:
        """Point a channel at an artifact if it still names `expected` (None: nothing yet).

        `facts` say how it came to that (action, role, gate, …); they stand in the event. Raises ChannelMoved when it
        names something else, InputError for an unknown artifact, Withdrawn or ArtifactDeleted for one that may not
        or cannot be used.
        """
        with self._db.write() as session:
            now = current_entry(session, name)
            if (now.artifact_id if now else None) != expected:
                raise ChannelMoved(
                    f"channel {name} names another artifact than expected",
                    value=now.artifact_id if now else None,
                    next_step="m4v channels list",
                )
            return move(session, name, artifact_id, moved_by=moved_by, reason=reason, facts=facts or {})

    def channel(self, name: str) -> ChannelRow | None:
        """Where a channel points now."""
        with self._db.read() as session:
            row = current_entry(session, name)
            return _with_facts(session, [row])[0] if row else None

    def channel_history(self, name: str | None = None) -> list[ChannelRow]:
        """Every move, newest first."""
        query = select(schema.Channel).order_by(schema.Channel.moved_at.desc(), schema.Channel.seq.desc())
        if name is not None:
            query = query.where(schema.Channel.name == name)
        with self._db.read() as session:
            return _with_facts(session, session.scalars(query).all())

    def takedowns(self) -> list[TakedownRow]:
        """Every request, oldest first."""
        with self._db.read() as session:
            rows = session.scalars(select(schema.Takedown).order_by(schema.Takedown.takedown_id))
            return [TakedownRow(**{f: getattr(r, f) for f in TakedownRow.__dataclass_fields__}) for r in rows]


def current_entry(session: Session, name: str) -> schema.Channel | None:
    """The newest entry of a channel."""
    query = select(schema.Channel).where(schema.Channel.name == name).order_by(schema.Channel.seq.desc())
    return session.scalars(query.limit(1)).one_or_none()


def usable(session: Session, artifact_id: str) -> schema.Artifact:
    """The artifact's row; raises InputError when it is unknown, Withdrawn or ArtifactDeleted when it may not or
    cannot be used."""
    known = select(schema.Artifact).where(schema.Artifact.artifact_id == artifact_id)
    artifact = session.scalars(known.order_by(schema.Artifact.kind)).first()
    if artifact is None:
        raise InputError("ledger has no such artifact", value=artifact_id, next_step="m4v artifacts list")
    withdrawal = session.get(Withdrawal, (artifact.artifact_id, artifact.kind))
    if withdrawal is not None:
        raise Withdrawn(artifact_id, artifact.kind, withdrawal.takedown_id)
    if artifact.deletion is not None:
        raise ArtifactDeleted(artifact_id, artifact.kind, artifact.deleted_at)
    return artifact


def move(
    session: Session, name: str, artifact_id: str, *, moved_by: str, reason: str, facts: Mapping[str, Any]
) -> ChannelRow:
    """Add the channel's next entry, whatever it names now; the caller is inside `Database.write()`."""
    artifact, now = usable(session, artifact_id), current_entry(session, name)
    row = schema.Channel(
        name=name,
        seq=now.seq + 1 if now else 1,
        artifact_id=artifact_id,
        kind=artifact.kind,
        moved_by=moved_by,
        reason=reason,
        moved_at=utc_now(),
    )
    session.add(row)
    moved = {
        "seq": row.seq,
        "artifact_id": artifact_id,
        "from": now.artifact_id if now else None,
        "facts": plain_json(facts),
        "row": row_digest(row),
    }
    record_event(session, "channel.moved", name, moved)
    return _with_facts(session, [row])[0]


def _with_facts(session: Session, rows: Sequence[schema.Channel]) -> list[ChannelRow]:
    """Entries with what their events say about how they came about."""
    event = schema.Event
    query = select(event).where(event.subject.in_({r.name for r in rows}), event.kind == "channel.moved")
    facts = {(e.subject, e.payload["seq"]): e.payload.get("facts", {}) for e in session.scalars(query)}
    return [
        ChannelRow(
            name=r.name, seq=r.seq, artifact_id=r.artifact_id, kind=ArtifactKind(r.kind), moved_by=r.moved_by,
            reason=r.reason, moved_at=r.moved_at, facts=facts.get((r.name, r.seq), {}),
        )
        for r in rows
    ]  # fmt: skip
