"""A ledger that only reads: what pages get, so that no page can change history by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from m4v.core.errors import NeedsHuman
from pipelines.ledger import Ledger
from pipelines.ledger.database import Database


class ReadOnly(NeedsHuman):
    """Something would have changed the ledger through a connection that only reads."""


class ReadingDatabase(Database):
    """Reads only: every write raises ReadOnly before a statement is sent."""

    @contextmanager
    def write(self, *, chain: bool = True) -> Iterator[Session]:
        raise _refusal()
        yield  # a generator, as the base class has it

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        raise _refusal()
        yield


def reading_ledger(url: str) -> Ledger:
    """A ledger at `url` that only reads; its schema must be there already (`Ledger.open` makes it)."""
    return Ledger(ReadingDatabase(url))


def _refusal() -> ReadOnly:
    return ReadOnly("this view of the ledger only reads", next_step="use the command line, or an action's form")
