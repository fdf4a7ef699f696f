"""Parts of statements that are built once for each kind of database: to build one takes longer than to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ARRAY, Column, ColumnElement, Integer, String, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Session


def is_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"


def among_given(sqlite: bool, column: Column[Any], name: str) -> ColumnElement[bool]:
    """`column` is one of some thousand values, which are the statement's parameter `name`."""
    if sqlite:
        return column.in_(bindparam(name, expanding=True))
    return column == func.any(bindparam(name, type_=ARRAY(column.type)))


def ids_given(sqlite: bool, column: Column[Any], name: str) -> ColumnElement[bool]:
    """`column` is one of any number of ids, which are the parameter `name`, as `as_ids` makes it."""
    given = bindparam(name, type_=String)
    members = func.json_each(given) if sqlite else func.json_array_elements_text(cast(given, JSON))
    return column.in_(select(members.table_valued("value").c.value))


def as_ids(ids: Iterable[str]) -> str:
    return json.dumps(list(ids))


def numbers_given(sqlite: bool, column: Column[Any], name: str) -> ColumnElement[bool]:
    """`column` is one of any number of numbers, which are the parameter `name`, as `as_numbers` makes it."""
    given = bindparam(name, type_=String)
    if sqlite:
        members = func.json_each(given).table_valued("value")
        return column.in_(select(cast(members.c.value, Integer)))
    return column == func.any(cast(func.translate(given, "[]", "{}"), ARRAY(Integer)))


def as_numbers(numbers: Iterable[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def joined(sqlite: bool, column: ColumnElement[Any]) -> ColumnElement[str]:
    """Aggregate of texts without commas as one text."""
    return func.group_concat(column, type_=String()) if sqlite else func.string_agg(column, ",", type_=String())
