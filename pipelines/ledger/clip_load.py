"""Rows of the clip index on their way into the database, many at a time: COPY on PostgreSQL, batches on SQLite."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ARRAY, Boolean, ColumnElement, Integer, LargeBinary, String, Table, func, literal, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from m4v.core.errors import InfrastructureError
from pipelines.ledger import schema
from pipelines.ledger.database import Database

ASKED = 4096  # values of one question
_LOCK = 0x4D345649  # "M4VI": writers of the index wait for each other, and for nobody else
_ANALYSED = ("clip", "part_sample", "part_group", "part_ids", "artifact_part", "clip_part", "hash_block")
Row = tuple[Any, ...]


@contextmanager
def index_writing(database: Database) -> Iterator[Session]:
    """A small transaction on the index. PostgreSQL's other writers are not held up by it."""
    with database.write(chain=False) as session:
        if not database.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        yield session


def analyse(database: Database) -> None:
    """Let PostgreSQL's planner know what was loaded; SQLite's needs no statistics for the questions here."""
    if not database.is_sqlite:
        with database.write(chain=False) as session:
            session.execute(text(f"ANALYZE {', '.join(_ANALYSED)}"))


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

    with driver_faults(table.name):
        if not ignore:
            _copy_to(raw, table.name, table, rows)
            return
        try:  # known keys are the exception: of an indexing that was killed, or of two at once
            with raw.transaction():
                _copy_to(raw, table.name, table, rows)
        except psycopg.errors.UniqueViolation:
            staged = f"staged_{table.name}"
            raw.execute(f"CREATE TEMP TABLE IF NOT EXISTS {staged} (LIKE {table.name}) ON COMMIT DELETE ROWS")
            raw.execute(f"DELETE FROM {staged}")
            _copy_to(raw, staged, table, rows)
            raw.execute(f"INSERT INTO {table.name} SELECT * FROM {staged} ON CONFLICT DO NOTHING")


def _copy_to(raw: Any, target: str, table: Table, rows: Sequence[Row]) -> None:
    with raw.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types([_COPIED[type(column.type)] for column in table.columns])
        for row in rows:
            copy.write_row(row)


@contextmanager
def driver_faults(where: str) -> Iterator[None]:
    """Faults of PostgreSQL's driver where it is used directly, as InfrastructureError."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        told = " ".join(str(error).split())
        raise InfrastructureError(f"ledger database failed: {told}", where=where, next_step="m4v doctor") from error


_COPIED: dict[type, str] = {LargeBinary: "bytea", Integer: "int4", String: "text", Boolean: "bool"}
_COPIED[type(table_of(schema.Outbox).c.delivered_seq.type)] = "int8"


def among(session: Session, column: InstrumentedAttribute[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    """`column` is one of some thousand values."""
    if session.get_bind().dialect.name == "sqlite":
        return column.in_(values)
    return column == func.any(literal(list(values), ARRAY(column.type)))


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


def pack_ranges(numbers: Iterable[int]) -> bytes:
    """Numbers as runs of consecutive ones: first and last of each, 4 bytes little-endian each."""
    held = np.unique(np.fromiter(numbers, dtype=np.int64))
    breaks = np.flatnonzero(np.diff(held) != 1)
    firsts, lasts = np.append(held[:1], held[breaks + 1]), np.append(held[breaks], held[-1:])
    return np.stack([firsts, lasts], axis=1).astype("<i4").tobytes()


def unpack_ranges(packed: bytes) -> NDArray[np.int64]:
    """One row a run: its first number and its last."""
    return np.frombuffer(packed, dtype="<i4").astype(np.int64).reshape(-1, 2)


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
