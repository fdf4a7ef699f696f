"""Numbers of artifacts, which short rows hold in place of their ids. The caller is the only writer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ARRAY, ColumnElement, Integer, String, cast, func, insert, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from pipelines.ledger.clip_load import next_number
from pipelines.ledger.members import ids_in
from pipelines.ledger.schema_exposure import ArtifactNumber

Numbers = NDArray[np.int64]
Key = tuple[str, str]  # artifact id and kind
_PACKED = np.dtype("<i4")


def known_numbers(session: Session, keys: Collection[Key]) -> dict[Key, int]:
    """Numbers of artifacts; those that have none are left out."""
    row = ArtifactNumber
    query = select(row.artifact_id, row.kind, row.number).where(
        row.artifact_id.in_(ids_in(session, dict.fromkeys(i for i, _ in keys)))
    )
    return {key: number for *found, number in session.execute(query) if (key := (found[0], found[1])) in keys}


def numbers_of(session: Session, keys: Iterable[Key]) -> dict[Key, int]:
    """Numbers of artifacts, new ones where they have none yet."""
    wanted = dict.fromkeys(keys)
    found = known_numbers(session, wanted)
    number = next_number(session, ArtifactNumber.number)
    new = [key for key in wanted if key not in found]
    if new:
        rows = [{"number": number + n, "artifact_id": i, "kind": k} for n, (i, k) in enumerate(new)]
        session.execute(insert(ArtifactNumber), rows)
    return found | {key: number + n for n, key in enumerate(new)}


def ids_of(session: Session, numbers: Iterable[int]) -> dict[int, str]:
    """Ids of numbered artifacts."""
    row = ArtifactNumber
    query = select(row.number, row.artifact_id).where(numbered(session, row.number, list(numbers)))
    return {row.number: row.artifact_id for row in session.execute(query)}


def numbered(session: Session, column: InstrumentedAttribute[Any], numbers: Sequence[int]) -> ColumnElement[bool]:
    """`column` is one of many numbers, which are one parameter."""
    if session.get_bind().dialect.name == "sqlite":
        members = func.json_each(f"[{','.join(map(str, numbers))}]").table_valued("value")
        return column.in_(select(cast(members.c.value, Integer)))
    return column == func.any(cast(literal(f"{{{','.join(map(str, numbers))}}}", String), ARRAY(Integer)))


def pack(numbers: Iterable[int]) -> bytes:
    return np.fromiter(numbers, dtype=_PACKED).tobytes()


def unpack(packed: bytes) -> Numbers:
    return np.frombuffer(packed, dtype=_PACKED).astype(np.int64)
