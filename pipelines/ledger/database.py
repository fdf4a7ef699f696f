"""Engine, transactions and fault translation for SQLite and PostgreSQL.

Writers are serialised: SQLite by `BEGIN IMMEDIATE`, PostgreSQL by a row lock on the head of the event
chain, so two writers can neither fork the chain nor interleave check and change.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from m4v.core.errors import ConfigError, InfrastructureError, M4VError
from m4v.core.storage import storage_faults
from pipelines.ledger.schema import ChainHead
from pipelines.ledger.types import UtcDateTime, utc_now

BUSY_TIMEOUT_S = 30
# Execution options of a query whose rows hold large bytes: PostgreSQL sends them as they are, not as hexadecimal.
AS_BYTES = {"m4v_as_bytes": True}
_BINARY = 1  # psycopg's format of results
_WRITE = "ledger_write"
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def parse_url(url: str) -> URL:
    """`path/to/ledger.sqlite`, `sqlite:///…` or `postgresql://…`; raises ConfigError for anything else."""
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser().absolute()))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("ledger URL does not parse", next_step="use PATH, sqlite:///PATH or postgresql://…") from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise ConfigError(
        "ledger URL is of an unknown kind",
        value=parsed.render_as_string(hide_password=True),
        next_step="use PATH, sqlite:///PATH or postgresql://…",
    )


class Database:
    """A connection pool and its two kinds of transactions, `read` and `write`."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.name = self.url.render_as_string(hide_password=True)
        self.engine = self._sqlite_engine() if self.is_sqlite else self._postgres_engine()
        self._writer = self.engine.execution_options(**{_WRITE: True})
        # A consistent picture over several queries; SQLite's WAL snapshot gives that by itself.
        self._reader = self.engine
        if not self.is_sqlite:
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._shared = threading.local()
        _engines.add(self.engine)

    def _sqlite_engine(self) -> Engine:
        path = Path(str(self.url.database))
        with storage_faults(self.name):
            path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgres_engine(self) -> Engine:
        try:
            engine = create_engine(self.url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
        except ModuleNotFoundError as error:
            raise ConfigError(
                "PostgreSQL driver is not installed", value=error.name, next_step="pip install 'm4v-pipeline[postgres]'"
            ) from None
        event.listen(engine, "before_cursor_execute", _ask_for_bytes)
        return engine

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn database faults into InfrastructureError (without the statement and its parameters)."""
        try:
            yield
        except M4VError:
            raise
        except DBAPIError as error:
            raise self._fault(error.orig or error) from error
        except (SQLAlchemyError, PoolTimeout, sqlite3.Error) as error:
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> InfrastructureError:
        text = " ".join(str(error).split()) or type(error).__name__
        return InfrastructureError(f"ledger database failed: {text}", where=self.name, next_step="m4v doctor")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only snapshot: this thread's own `snapshot` if one is open."""
        with self.faults():
            shared: Session | None = getattr(self._shared, "session", None)
            if shared is not None:
                yield shared
                return
            with Session(self._reader) as session:
                yield session

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One picture, and one connection, for everything that this thread reads meanwhile. What is written meanwhile
        is not in it."""
        if getattr(self._shared, "session", None) is not None:
            yield
            return
        with self.read() as session:
            self._shared.session = session
            try:
                yield
            finally:
                self._shared.session = None

    @contextmanager
    def write(self, *, chain: bool = True) -> Iterator[Session]:
        """One writer at a time, committed at the end. `chain=False`: a small update without an event."""
        with self.faults(), Session(self._writer) as session, session.begin():
            if chain:
                session.execute(select(ChainHead.seq).with_for_update())
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A writing connection for migrations, committed at the end."""
        with self.faults(), self._writer.begin() as connection:
            yield connection

    def now(self, session: Session) -> datetime:
        """The clock that leases are measured with: the database server's when several hosts share it."""
        if self.is_sqlite:
            return utc_now()
        return session.execute(select(func.clock_timestamp(type_=UtcDateTime()))).scalar_one()

    def close(self) -> None:
        self.engine.dispose()


def _ask_for_bytes(_: Connection, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
    if context is not None and context.execution_options.get("m4v_as_bytes"):
        cursor.format = _BINARY


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, DDL included
    for pragma in (
        "foreign_keys=ON",
        "synchronous=FULL",
        "temp_store=MEMORY",
        "cache_size=-32768",
        "mmap_size=268435456",
    ):
        connection.execute(f"PRAGMA {pragma}")
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:  # SQLite does not wait for its busy timeout while the journal mode changes
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _forget_in_child() -> None:
    """Drop the parent's connections in a forked child, which must not use (nor close) them."""
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_in_child)
