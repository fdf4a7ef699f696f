"""Numbers of artifacts, which short rows hold in place of their ids. The caller is the only writer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, insert, select
from sqlalchemy.orm import Session

from pipelines.ledger.clip_load import next_number, table_of
from pipelines.ledger.schema_exposure import ArtifactNumber
from pipelines.ledger.statements import as_ids, as_numbers, ids_given, is_sqlite, numbers_given

Numbers = NDArray[np.int64]
Key = tuple[str, str]  # artifact id and kind
_PACKED = np.dtype("<i4")


def known_numbers(session: Session, keys: Collection[Key]) -> dict[Key, int]:
    """Numbers of artifacts; those that have none are left out."""
    rows = session.execute(_known(is_sqlite(session)), {"ids": as_ids(dict.fromkeys(i for i, _ in keys))})
    return {key: number for *found, number in rows if (key := (found[0], found[1])) in keys}


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
    rows = session.execute(_numbered(is_sqlite(session)), {"numbers": as_numbers(numbers)})
    return dict(rows.tuples().all())


@cache
def _known(sqlite: bool) -> Select[Any]:
    row = table_of(ArtifactNumber).c
    return select(row.artifact_id, row.kind, row.number).where(ids_given(sqlite, row.artifact_id, "ids"))


@cache
def _numbered(sqlite: bool) -> Select[Any]:
    row = table_of(ArtifactNumber).c
    return select(row.number, row.artifact_id).where(numbers_given(sqlite, row.number, "numbers"))


def pack(numbers: Iterable[int]) -> bytes:
    return np.fromiter(numbers, dtype=_PACKED).tobytes()


def unpack(packed: bytes) -> Numbers:
    return np.frombuffer(packed, dtype=_PACKED).astype(np.int64)
