"""What artifacts with certain clips lead to and came from: one query each, for the impact of a takedown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import String, cast, select

from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.members import ids_in
from pipelines.ledger.numbers import Key, Numbers, ids_of, known_numbers, unpack
from pipelines.ledger.stems import products_of
from pipelines.ledger.trained import joined
from pipelines.ledger.types import iso_text


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

    def numbers_of(self, artifacts: Iterable[Key]) -> dict[Key, int]:
        """Numbers of artifacts, by id and kind; those that have none are left out."""
        with self._db.read() as session:
            return known_numbers(session, dict.fromkeys(artifacts))

    def products_of(self, stems: Sequence[Numbers]) -> list[dict[str, Numbers]]:
        """Samples, scores and reports that were made from some sets of numbered artifacts: for each set the products'
        numbers by kind, in any order, some more than once. No number stands in two sets."""
        with self._db.read() as session:
            found = products_of(session, stems)
        return [{kind: unpack(packed) for kind, packed in made.items()} for made in found]

    def ids_of(self, numbers: Iterable[int]) -> dict[int, str]:
        """Ids of numbered artifacts."""
        with self._db.read() as session:
            return ids_of(session, numbers)

    def kinds_of(self, artifact_ids: Iterable[str]) -> dict[str, str]:
        """Kinds of recorded artifacts; unknown ids are left out."""
        artifact = schema.Artifact
        with self._db.read() as session:
            query = select(artifact.artifact_id, artifact.kind).where(
                artifact.artifact_id.in_(ids_in(session, artifact_ids))
            )
            return {row.artifact_id: row.kind for row in session.execute(query)}

    def reports_on(self, clips_ids: Iterable[str]) -> dict[str, set[str]]:
        """Reports that runs made of these clip tables, by table."""
        taken, made, found = schema.RunInput, schema.RunOutput, dict[str, set[str]]()
        with self._db.read() as session:
            query = (
                select(taken.artifact_id, made.artifact_id)
                .join(made, made.run_id == taken.run_id)
                .where(taken.artifact_id.in_(ids_in(session, clips_ids)), taken.kind == "clips", made.kind == "report")
            )
            for clips, report in session.execute(query):
                found.setdefault(clips, set()).add(report)
        return found

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

    def moves_to(self, artifact_ids: Container[str]) -> list[ChannelMove]:
        """Moves of channels to any of these artifacts, by channel and time."""
        found: list[ChannelMove] = []
        with self._db.read() as session:
            # One row a channel: thousands of rows take longer to fetch than to find.
            channel = schema.Channel
            columns = (cast(channel.seq, String), channel.artifact_id, iso_text(session, channel.moved_at))
            query = select(channel.name, *(joined(session, column) for column in columns)).group_by(channel.name)
            rows = session.execute(query).all()
        for name, *texts in sorted(map(tuple, rows)):
            seqs, targets, times = (text.split(",") for text in texts)
            numbers = list(map(int, seqs))
            last = max(numbers)
            moves = sorted(move for move in zip(numbers, targets, times, strict=True) if move[1] in artifact_ids)
            found += [ChannelMove(name, n, to, at, n == last) for n, to, at in moves]
        return found
