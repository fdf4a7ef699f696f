"""What artifacts with certain clips lead to and came from: one query each, for the impact of a takedown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import select

from pipelines.ledger import schema
from pipelines.ledger.clip_load import table_of
from pipelines.ledger.database import Database
from pipelines.ledger.members import ids_in
from pipelines.ledger.types import iso


class SourceLink(NamedTuple):
    """A source listing that a clip table was curated from; `name` is that of its source entry."""

    source_id: str
    name: str
    clips_id: str


class ChannelMove(NamedTuple):
    """A move of a channel to an artifact; `current` when none came after it."""

    name: str
    seq: int
    artifact_id: str
    moved_at: str
    current: bool


class ReachOps:
    """The reach verbs of a Ledger."""

    _db: Database

    def kinds_of(self, artifact_ids: Iterable[str]) -> dict[str, str]:
        """Kinds of recorded artifacts; unknown ids are left out."""
        artifact = schema.Artifact
        with self._db.read() as session:
            query = select(artifact.artifact_id, artifact.kind).where(
                artifact.artifact_id.in_(ids_in(session, artifact_ids))
            )
            return {row.artifact_id: row.kind for row in session.execute(query)}

    def sources_of(self, clips_ids: Iterable[str]) -> list[SourceLink]:
        """Source listings that these clip tables were curated from, sorted."""
        made, taken, artifact = schema.RunOutput, schema.RunInput, schema.Artifact
        with self._db.read() as session:
            query = (
                select(taken.artifact_id, artifact.summary, made.artifact_id)
                .join(made, made.run_id == taken.run_id)
                .join(artifact, (artifact.artifact_id == taken.artifact_id) & (artifact.kind == taken.kind))
                .where(made.artifact_id.in_(ids_in(session, clips_ids)), made.kind == "clips", taken.kind == "source")
            )
            rows = session.execute(query).all()
        return sorted({SourceLink(source, str(summary.get("name", "")), clips) for source, summary, clips in rows})

    def moves_to(self, artifact_ids: Iterable[str]) -> list[ChannelMove]:
        """Moves of channels to any of these artifacts, by channel and time."""
        channel, wanted = schema.Channel, set(artifact_ids)
        table = table_of(channel)
        named = select(table.c.name, table.c.seq, table.c.artifact_id)
        with self._db.read() as session:
            moves = sorted(tuple(row) for row in session.connection().execute(named))
            hit = {artifact_id for _, _, artifact_id in moves if artifact_id in wanted}
            times = select(channel.name, channel.seq, channel.moved_at).where(
                channel.artifact_id.in_(ids_in(session, hit))
            )
            moved_at = {(name, seq): iso(at) for name, seq, at in session.execute(times)}
        last = {name: seq for name, seq, _ in moves}
        return [ChannelMove(n, seq, i, moved_at[n, seq], seq == last[n]) for n, seq, i in moves if i in hit]
