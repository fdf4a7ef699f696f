"""Many ids as one SQL parameter: parameters are limited in number, and slow to bind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Select, cast, func, select
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Session


def ids_in(session: Session, ids: Iterable[str]) -> Select[tuple[Any]]:
    """For `column.in_(…)`: a subquery with one row an id."""
    if session.get_bind().dialect.name == "sqlite":
        members = func.json_each(json.dumps(list(ids))).table_valued("value")
    else:
        members = func.json_array_elements_text(cast(list(ids), JSON)).table_valued("value")
    return select(members.c.value)
