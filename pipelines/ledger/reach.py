"""What artifacts with certain clips lead to and came from: one query each, for the impact of a takedown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, String, cast, select

from pipelines.ledger import schema
from pipelines.ledger.clip_load import table_of
from pipelines.ledger.database import Database
from pipelines.ledger.members import ids_in
from pipelines.ledger.numbers import Key, Numbers, ids_of, known_numbers, unpack
from pipelines.ledger.statements import as_ids, ids_given, is_sqlite, joined
from pipelines.ledger.stems import products_of
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


@cache
def _sources(sqlite: bool) -> Select[Any]:
    made, taken, artifact = (table_of(model) for model in (schema.RunOutput, schema.RunInput, schema.Artifact))
    same = (artifact.c.artifact_id == taken.c.artifact_id) & (artifact.c.kind == taken.c.kind)
    return (
        select(taken.c.artifact_id, artifact.c.summary, made.c.artifact_id)
        .select_from(taken.join(made, made.c.run_id == taken.c.run_id).join(artifact, same))
        .where(ids_given(sqlite, made.c.artifact_id, "clips"), made.c.kind == "clips", taken.c.kind == "source")
    )


@cache
def _moves(sqlite: bool) -> Select[Any]:
    """One row a channel: thousands of rows take longer to fetch than to find."""
    channel = table_of(schema.Channel).c
    columns = (cast(channel.seq, String), channel.artifact_id, iso_text(sqlite, channel.moved_at))
    return select(channel.name, *(joined(sqlite, column) for column in columns)).group_by(channel.name)


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
        with self._db.read() as session:
            rows = session.execute(_sources(is_sqlite(session)), {"clips": as_ids(clips_ids)}).all()
        return sorted({SourceLink(source, str(summary.get("name", "")), clips) for source, summary, clips in rows})

    def moves_to(self, artifact_ids: Container[str]) -> list[ChannelMove]:
        """Moves of channels to any of these artifacts, by channel and time."""
        found: list[ChannelMove] = []
        with self._db.read() as session:
            rows = session.execute(_moves(is_sqlite(session))).all()
        for name, *texts in sorted(map(tuple, rows)):
            seqs, targets, times = (text.split(",") for text in texts)
            numbers = list(map(int, seqs))
            last = max(numbers)
            moves = sorted(move for move in zip(numbers, targets, times, strict=True) if move[1] in artifact_ids)
            found += [ChannelMove(name, n, to, at, n == last) for n, to, at in moves]
        return found
