"""Rows of the clip index on their way into the database, many at a time: COPY on PostgreSQL, batches on SQLite."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Integer, LargeBinary, String, Table, bindparam, func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from m4v.core.errors import InfrastructureError
from pipelines.ledger import schema
from pipelines.ledger.database import Database

ASKED = 4096  # values of one question
_LOCK = 0x4D345649  # "M4VI": writers of the index wait for each other, and for nobody else
Row = tuple[Any, ...]


@contextmanager
def index_writing(database: Database) -> Iterator[Session]:
    """A small transaction on the index. PostgreSQL's other writers are not held up by it."""
    with database.write(chain=False) as session:
        if not database.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield session


def table_of(model: type[schema.Base]) -> Table:
    table = model.__table__
    assert isinstance(table, Table)
    return table


def insert_rows(session: Session, model: type[schema.Base], rows: Sequence[Row], *, ignore: bool = False) -> None:
    """Insert rows whose values stand in the order of the table's columns; `ignore` passes over known keys."""
    if not rows:
        return
    table = table_of(model)
    raw = session.connection().connection.driver_connection
    if isinstance(raw, sqlite3.Connection):
        marks = ",".join("?" * len(table.columns))
        raw.executemany(f"INSERT {'OR IGNORE ' if ignore else ''}INTO {table.name} VALUES ({marks})", rows)
    else:
        _copy(raw, table, rows, ignore)


def _copy(raw: Any, table: Table, rows: Sequence[Row], ignore: bool) -> None:
    import psycopg

    target = f"staged_{table.name}" if ignore else table.name
    types = [_COPIED[type(column.type)] for column in table.columns]
    try:
        with raw.cursor() as cursor:
            if ignore:
                cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {target} (LIKE {table.name}) ON COMMIT DELETE ROWS")
                cursor.execute(f"DELETE FROM {target}")
            with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
            if ignore:
                cursor.execute(f"INSERT INTO {table.name} SELECT * FROM {target} ON CONFLICT DO NOTHING")
    except psycopg.Error as error:
        text_ = " ".join(str(error).split())
        raise InfrastructureError(
            f"ledger database failed: {text_}", where=table.name, next_step="m4v doctor"
        ) from error


_COPIED: dict[type, str] = {LargeBinary: "bytea", Integer: "int4", String: "text", Boolean: "bool"}
_COPIED[type(table_of(schema.Outbox).c.delivered_seq.type)] = "int8"


def among(column: InstrumentedAttribute[Any] | ColumnElement[Any], name: str = "asked") -> ColumnElement[bool]:
    """`column` is one of the values bound as `name`, however many they are."""
    return column.in_(bindparam(name, expanding=True))


def chunks(values: Iterable[Any], size: int = ASKED) -> Iterator[list[Any]]:
    """The values in lists of `size`."""
    held: list[Any] = []
    for value in values:
        held.append(value)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def next_number(session: Session, column: InstrumentedAttribute[int], least: int = 1) -> int:
    """The number after the largest that was given; the caller is alone in `index_writing`."""
    return max(least, (session.scalar(select(func.max(column))) or 0) + 1)


def word_key(data: bytes) -> int:
    """The first 8 bytes as a signed integer, for a column that a database can index."""
    return int.from_bytes(data[:8], "big", signed=True)


def source_key(source_id: str) -> int:
    """By what the clips of one source file are found."""
    return word_key(hashlib.sha256(source_id.encode("utf-8", "surrogatepass")).digest())


def url_key(url: str) -> bytes:
    """By what a URL is found."""
    return hashlib.sha256(url.strip().encode("utf-8", "surrogatepass")).digest()[:16]
