"""Triggers that keep rows append-only: an UPDATE of any column but the free ones, or a DELETE, is refused."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op


def guard(table: str, free: Sequence[str] = ()) -> None:
    """Guard a table that stands; `free` columns (projections) may change. PostgreSQL needs `m4v_refuse` of 0001."""
    columns = ", ".join(c["name"] for c in sa.inspect(op.get_bind()).get_columns(table) if c["name"] not in free)
    if op.get_bind().dialect.name == "sqlite":
        refuse = f"SELECT RAISE(ABORT, '{table} is append-only')"
        for when in (f"UPDATE OF {columns}", "DELETE"):
            name = f"{table}_refuse_{when.split()[0].lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {when} ON {table} BEGIN {refuse}; END")
        return
    for when, each in ((f"UPDATE OF {columns} OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        name = f"{table}_refuse_{each.lower()}"
        op.execute(f"CREATE TRIGGER {name} BEFORE {when} ON {table} FOR EACH {each} EXECUTE FUNCTION m4v_refuse()")
