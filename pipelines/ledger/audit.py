"""Proving a ledger with bounded memory: what events say and what rows hold meet in a scratch database on disk."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.storage import storage_faults
from pipelines.ledger import schema
from pipelines.ledger.chain import PROJECTIONS, Change, change_of, event_hash, row_digest
from pipelines.ledger.types import UtcDateTime, iso
from pipelines.ledger.witnesses import TABLES, witnessed_by

BATCH = 1000
MAX_PROBLEMS = 1000  # listed of one sort; a ledger with more is not read row by row
_SEPARATOR = "\x1f"  # between the parts of a key; it stands in none


@contextmanager
def scratch_database() -> Iterator[sqlite3.Connection]:
    """An empty database in the temporary directory, gone afterwards."""
    with storage_faults(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="m4v-verify-") as folder:
        connection = sqlite3.connect(Path(folder) / "scratch.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384", "temp_store=FILE"):
            connection.execute(f"PRAGMA {pragma}")
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()


def all_events(session: Session) -> Iterator[schema.Event]:
    query = select(schema.Event).order_by(schema.Event.seq).execution_options(yield_per=BATCH)
    yield from session.scalars(query)


def _insert(scratch: sqlite3.Connection, table: str, rows: Iterable[tuple[str, ...]]) -> None:
    waiting = iter(rows)
    while batch := list(islice(waiting, BATCH)):
        marks = ", ".join("?" * len(batch[0]))
        scratch.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", batch)


# The chain and the rows it witnesses


def check_chain(session: Session, scratch: sqlite3.Connection, problems: list[str]) -> tuple[int, str]:
    """Check link after link; only events that are as written count as witnesses. Returns the last link."""
    scratch.execute("CREATE TABLE witness (key TEXT PRIMARY KEY, name TEXT, digest TEXT) WITHOUT ROWID")
    end: list[Any] = [0, schema.GENESIS]
    _insert(scratch, "witness", _witnesses(session, problems, end))
    last = session.execute(select(schema.ChainHead.seq, schema.ChainHead.hash)).one()
    if [last.seq, last.hash] != end:
        problems.append(f"chain ends at event {end[0]}, its head says {last.seq}")
    return int(end[0]), str(end[1])


def _witnesses(session: Session, problems: list[str], end: list[Any]) -> Iterator[tuple[str, str, str]]:
    seq, head = 0, schema.GENESIS
    try:
        for event in all_events(session):
            expected = event_hash(head, seq + 1, event.at, event.kind, event.subject, event.payload)
            if event.seq != seq + 1:
                problems.append(f"events {seq + 1} to {event.seq - 1} are missing")
            elif event.prev_hash != head or event.hash != expected:
                problems.append(f"event {event.seq} ({event.kind}) was changed")
            else:
                for key, digest in witnessed_by(event):
                    yield _SEPARATOR.join(key), key[0], digest
            seq, head = event.seq, event.hash
            end[:] = [seq, head]
    except ValueError as error:  # JSON or a time that does not parse
        problems.append(f"an event soon after {seq} cannot be read: {error}")


def check_rows(session: Session, scratch: sqlite3.Connection) -> list[str]:
    """Rows that differ from their event, have none, or are gone; call after `check_chain`."""
    scratch.execute("CREATE TABLE found (key TEXT PRIMARY KEY, digest TEXT) WITHOUT ROWID")
    problems: list[str] = []
    for table in TABLES:
        try:
            _insert(scratch, "found", _rows(session, table))
        except ValueError as error:
            problems.append(f"a row of {table.__tablename__} cannot be read: {error}")
            scratch.execute("DELETE FROM witness WHERE name = ?", (table.__tablename__,))
    for what, query in _DIFFERENCES.items():
        found = [key for (key,) in scratch.execute(query)]
        problems += [f"row {key.replace(_SEPARATOR, ' ')} {what}" for key in found[:MAX_PROBLEMS]]
        if len(found) > MAX_PROBLEMS:
            problems.append(f"{len(found) - MAX_PROBLEMS} more rows like that: {what}")
    return problems


_DIFFERENCES = {
    "has no event": "SELECT key FROM found WHERE key NOT IN (SELECT key FROM witness) ORDER BY key",
    "was changed": "SELECT key FROM found JOIN witness USING (key) WHERE found.digest <> witness.digest ORDER BY key",
    "is missing": "SELECT key FROM witness WHERE key NOT IN (SELECT key FROM found) ORDER BY key",
}


def _rows(session: Session, table: type[schema.Base]) -> Iterator[tuple[str, str]]:
    left_out = PROJECTIONS.get(table, ())
    for row in session.scalars(select(table).execution_options(yield_per=BATCH)):
        if isinstance(row, schema.RunInput | schema.RunOutput):
            digest = f"{row.artifact_id} {row.kind}"
        else:
            digest = row_digest(row, *left_out)
        yield _SEPARATOR.join((table.__tablename__, *_key(row))), digest


def _key(row: schema.Base) -> tuple[str, ...]:
    return tuple(str(getattr(row, c.key)) for c in row.__table__.primary_key)


# Projections


def stale_projections(session: Session, scratch: sqlite3.Connection) -> Iterator[Change]:
    """Projections that differ from what the events say, as the change that mends each."""
    scratch.execute("CREATE TABLE change (place TEXT, seq INTEGER, vals TEXT)")
    scratch.execute("CREATE TABLE current (place TEXT PRIMARY KEY, vals TEXT) WITHOUT ROWID")
    tables: dict[str, type[schema.Base]] = {}
    _insert(scratch, "change", _changes(session, tables))
    for table in tables.values():
        _insert(scratch, "current", _current(session, table))
    joined = scratch.execute(
        "SELECT change.place, change.vals, current.vals FROM change LEFT JOIN current USING (place)"
        " ORDER BY change.place, change.seq"
    )
    for place, group in groupby(joined, key=lambda row: row[0]):
        wanted: dict[str, Any] = {}
        held = None
        for _, values, held in group:  # noqa: B007 - the same in every row of a place
            wanted |= json.loads(values)
        found = None if held is None else json.loads(held)
        if found is None or any(found[k] != v for k, v in wanted.items()):
            yield _mend(tables, place, wanted)


def _changes(session: Session, tables: dict[str, type[schema.Base]]) -> Iterator[tuple[Any, ...]]:
    for event in all_events(session):
        change = change_of(event.kind, event.subject, event.payload, event.at)
        if change is not None:
            name = change.table.__tablename__
            tables[name] = change.table
            ordered = [str(change.key[c.key]) for c in change.table.__table__.primary_key]
            yield _SEPARATOR.join((name, *ordered)), event.seq, _encode(change.values)


def _current(session: Session, table: type[schema.Base]) -> Iterator[tuple[str, str]]:
    for row in session.scalars(select(table).execution_options(yield_per=BATCH)):
        values = {c.key: getattr(row, c.key) for c in table.__table__.columns}
        yield _SEPARATOR.join((table.__tablename__, *_key(row))), _encode(values)


def _encode(values: dict[str, Any]) -> str:
    return json.dumps(values, default=_plain)


def _plain(value: object) -> str:
    return iso(value) if isinstance(value, datetime) else str(value)


def _mend(tables: dict[str, type[schema.Base]], place: str, values: dict[str, Any]) -> Change:
    name, *key = place.split(_SEPARATOR)
    table = tables[name]
    columns = table.__table__.columns
    mended = {
        k: datetime.fromisoformat(v) if v is not None and isinstance(columns[k].type, UtcDateTime) else v
        for k, v in values.items()
    }
    return Change(table, dict(zip((c.key for c in table.__table__.primary_key), key, strict=True)), mended)
