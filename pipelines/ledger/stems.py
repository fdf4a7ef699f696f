"""Stems: from which checkpoints, datasets and clip tables samples, scores and reports were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sqlalchemy import LargeBinary, bindparam, insert, select, text, type_coerce
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType

from pipelines.ledger.clip_load import table_of
from pipelines.ledger.database import AS_BYTES
from pipelines.ledger.numbers import Key, Numbers, numbers_of, pack, unpack
from pipelines.ledger.schema_exposure import Stem
from pipelines.ledger.statements import as_numbers, is_sqlite, numbers_given

PRODUCTS = ("samples", "scores", "report")

# Upwards from the inputs of a run: an input that is a stem ends there, of a product the inputs of who made it.
_STEMS = text("""
WITH RECURSIVE taken (artifact_id, kind) AS (
    SELECT artifact_id, kind FROM run_input WHERE run_id = :run_id
    UNION
    SELECT before.artifact_id, before.kind FROM taken
    JOIN run_output AS made ON made.artifact_id = taken.artifact_id AND made.kind = taken.kind
    JOIN run_input AS before ON before.run_id = made.run_id
    WHERE taken.kind IN ('samples', 'scores', 'report')
)
SELECT artifact_id, kind FROM taken WHERE kind IN ('checkpoint', 'dataset', 'clips') ORDER BY kind, artifact_id
""")
_MADE = text("""
SELECT DISTINCT artifact_id, kind FROM run_output
WHERE run_id = :run_id AND kind IN ('samples', 'scores', 'report') ORDER BY kind, artifact_id
""")
_CONSUMERS = text("""
SELECT DISTINCT taken.run_id FROM run_output AS made
JOIN run_input AS taken ON taken.artifact_id = made.artifact_id AND taken.kind = made.kind
WHERE made.run_id = :run_id AND made.kind IN ('samples', 'scores', 'report')
""")


_PRODUCTS = text("""
SELECT mark, string_agg(samples, ''), string_agg(scores, ''), string_agg(report, '') FROM (
    SELECT CASE WHEN number < length(:marks) THEN get_byte(:marks, number) ELSE 0 END AS mark, samples, scores, report
    FROM stem
) AS marked WHERE mark > 0 GROUP BY mark
""").bindparams(bindparam("marks", type_=LargeBinary))
_stem = table_of(Stem).c
# Without the column type, which copies every value.
_OF_NUMBERS = select(*(type_coerce(_stem[kind], NullType()) for kind in PRODUCTS)).where(
    numbers_given(True, _stem.number, "numbers")
)
_AS_BYTES: dict[str, Any] = {"execution_options": AS_BYTES}


def record_stems(session: Session, run_id: str) -> None:
    """Note what the outputs of a run stem from, in the transaction that records the run."""
    session.flush()
    waiting: list[str] = [run_id]
    while waiting:
        here = {"run_id": waiting.pop()}
        made: list[Key] = [(i, kind) for i, kind in session.execute(_MADE, here)]
        stems: list[Key] = [(i, kind) for i, kind in session.execute(_STEMS, here)] if made else []
        if stems and _add(session, stems, made):
            # The same bytes were made before and taken up: those who did have the new stems as well.
            waiting.extend(session.execute(_CONSUMERS, here).scalars().all())


def _add(session: Session, stems: list[Key], made: list[Key]) -> bool:
    """Whether any of the stems did not have all of these products."""
    numbers = numbers_of(session, [*stems, *made])
    new = False
    for stem in stems:
        row = session.get(Stem, numbers[stem])
        if row is None:
            row = Stem(number=numbers[stem], samples=b"", scores=b"", report=b"")
            session.add(row)
        for product in made:
            held: bytes = getattr(row, product[1])
            if numbers[product] not in unpack(held):
                setattr(row, product[1], held + pack([numbers[product]]))
                new = True
    session.flush()
    return new


def load_stems(session: Session, pairs: Iterable[tuple[Key, Key]]) -> None:
    """Note many pairs of stem and product at once, in a ledger that has no stems yet."""
    told = list(dict.fromkeys(pairs))
    numbers = numbers_of(session, (key for pair in told for key in pair))
    rows: dict[int, dict[str, list[int]]] = {}
    for stem, product in told:
        rows.setdefault(numbers[stem], {kind: [] for kind in PRODUCTS})[product[1]].append(numbers[product])
    if rows:
        session.execute(
            insert(Stem), [{"number": n, **{k: pack(held) for k, held in row.items()}} for n, row in rows.items()]
        )


def products_of(session: Session, stems: Sequence[Numbers]) -> list[dict[str, bytes]]:
    """Packed numbers of the products of each of some sets of stems, by kind."""
    if is_sqlite(session):
        return [_joined_here(session, numbers) for numbers in stems]
    # Which set each number is in: PostgreSQL takes as long to plan with ten thousand numbers as to read the rows.
    marks = np.zeros(max((int(numbers.max(initial=0)) for numbers in stems), default=0) + 1, dtype=np.uint8)
    for place, numbers in enumerate(stems):
        marks[numbers] = place + 1
    marks[0] = 0
    found = {mark: packed for mark, *packed in session.execute(_PRODUCTS, {"marks": marks.tobytes()}, **_AS_BYTES)}
    none = (b"",) * len(PRODUCTS)
    return [dict(zip(PRODUCTS, found.get(place + 1, none), strict=True)) for place in range(len(stems))]


def _joined_here(session: Session, numbers: Numbers) -> dict[str, bytes]:
    """SQLite has no aggregate that joins bytes."""
    if not len(numbers):
        return dict.fromkeys(PRODUCTS, b"")
    rows = session.execute(_OF_NUMBERS, {"numbers": as_numbers(numbers.tolist())}).all()
    return {kind: b"".join([row[place] for row in rows]) for place, kind in enumerate(PRODUCTS)}
