"""Channels (which artifact is promoted, by compare-and-swap) and takedown requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event, row_digest
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.records import ChannelMoved, ChannelRow, TakedownRow
from pipelines.ledger.types import utc_now


class RegistryOps:
    """The channel and takedown verbs of a Ledger."""

    _db: Database

    def move_channel(
        self, name: str, artifact_id: str, *, expected: str | None, moved_by: str, reason: str
    ) -> ChannelRow:
        """Point a channel at an artifact if it still names `expected` (None: nothing yet).

        Raises ChannelMoved when it names something else, InputError for an unknown artifact.
        """
        with self._db.write() as session:
            now = _current(session, name)
            if (now.artifact_id if now else None) != expected:
                raise ChannelMoved(
                    f"channel {name} names another artifact than expected",
                    value=now.artifact_id if now else None,
                    next_step="m4v channels list",
                )
            known = select(schema.Artifact).where(schema.Artifact.artifact_id == artifact_id)
            artifact = session.scalars(known.order_by(schema.Artifact.kind)).first()
            if artifact is None:
                raise InputError("ledger has no such artifact", value=artifact_id, next_step="m4v artifacts list")
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
            moved = {"seq": row.seq, "artifact_id": artifact_id, "from": expected, "row": row_digest(row)}
            record_event(session, "channel.moved", name, moved)
            return _channel_row(row)

    def channel(self, name: str) -> ChannelRow | None:
        """Where a channel points now."""
        with self._db.read() as session:
            row = _current(session, name)
            return _channel_row(row) if row else None

    def channel_history(self, name: str | None = None) -> list[ChannelRow]:
        """Every move, newest first."""
        query = select(schema.Channel).order_by(schema.Channel.moved_at.desc(), schema.Channel.seq.desc())
        if name is not None:
            query = query.where(schema.Channel.name == name)
        with self._db.read() as session:
            return [_channel_row(r) for r in session.scalars(query)]

    def request_takedown(self, selector: Mapping[str, Any], *, reason: str, requested_by: str) -> str:
        """Record which clips have to go; returns the takedown's id."""
        row = schema.Takedown(
            takedown_id=new_id(),
            selector=dict(selector),
            reason=reason,
            requested_by=requested_by,
            requested_at=utc_now(),
        )
        with self._db.write() as session:
            session.add(row)
            record_event(session, "takedown.requested", row.takedown_id, {"row": row_digest(row)})
            return row.takedown_id

    def takedowns(self) -> list[TakedownRow]:
        """Every request, oldest first."""
        with self._db.read() as session:
            rows = session.scalars(select(schema.Takedown).order_by(schema.Takedown.takedown_id))
            return [TakedownRow(**{f: getattr(r, f) for f in TakedownRow.__dataclass_fields__}) for r in rows]


def _current(session: Session, name: str) -> schema.Channel | None:
    query = select(schema.Channel).where(schema.Channel.name == name).order_by(schema.Channel.seq.desc())
    return session.scalars(query.limit(1)).one_or_none()


def _channel_row(row: schema.Channel) -> ChannelRow:
    values = {f: getattr(row, f) for f in ChannelRow.__dataclass_fields__}
    return ChannelRow(**{**values, "kind": ArtifactKind(row.kind)})
