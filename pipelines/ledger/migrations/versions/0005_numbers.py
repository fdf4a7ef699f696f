"""Checkpoints by course and products by stem, packed as numbers: an impact reads thousands of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_PRODUCTS = ("samples", "scores", "report")
_STATE = np.dtype([("number", "<i4"), ("start", "<i4"), ("cursor", "<i8")])
_NUMBERS = sa.table("artifact_number", sa.column("number"), sa.column("artifact_id"), sa.column("kind"))
_STEMS = sa.table("stem", sa.column("number"), *(sa.column(kind, sa.LargeBinary()) for kind in _PRODUCTS))
_COURSES = sa.table(
    "checkpoint_course",
    *(sa.column(name) for name in ("course_no", "stage", "dataset_id", "order_id", "seed", "ids")),
    sa.column("states", sa.LargeBinary()),
)
Key = tuple[str, str]  # artifact id and kind


def upgrade() -> None:
    _create_tables()
    states = _rows(
        "SELECT state.* FROM checkpoint_exposure AS state JOIN artifact ON artifact_id = checkpoint_id"
        " AND kind = 'checkpoint' ORDER BY recorded_at, artifact_id"
    )
    # The kind of a stem is that of a recorded artifact; the id alone was kept.
    pairs = _rows(
        "SELECT pair.stem_id, stem.kind AS stem_kind, pair.kind, pair.artifact_id FROM artifact_stem AS pair"
        " JOIN artifact AS stem ON stem.artifact_id = pair.stem_id AND stem.kind IN ('checkpoint', 'dataset', 'clips')"
        " JOIN artifact AS made ON made.artifact_id = pair.artifact_id AND made.kind = pair.kind"
        " ORDER BY made.recorded_at, pair.artifact_id, pair.kind, stem.recorded_at, pair.stem_id, stem.kind"
    )
    told: list[Key] = [(i, "checkpoint") for row in states for i in (row.init_from, row.checkpoint_id) if i is not None]
    told += [key for row in pairs for key in ((row.stem_id, row.stem_kind), (row.artifact_id, row.kind))]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(told), start=1)}
    _insert(_NUMBERS, ({"number": n, "artifact_id": i, "kind": k} for (i, k), n in numbers.items()))
    _insert(_STEMS, _stems(pairs, numbers))
    _insert(_COURSES, _courses(states, numbers))
    op.drop_table("artifact_stem")
    op.drop_index("ix_checkpoint_exposure_course", "checkpoint_exposure")


def _create_tables() -> None:
    op.create_table(
        "artifact_number",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_artifact_number"),
        sa.UniqueConstraint("artifact_id", "kind", name="uq_artifact_number_artifact_id_kind"),
    )
    op.create_table(
        "stem",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        *(sa.Column(kind, sa.LargeBinary(), nullable=False) for kind in _PRODUCTS),
        sa.PrimaryKeyConstraint("number", name="pk_stem"),
    )
    op.create_table(
        "checkpoint_course",
        sa.Column("course_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=True),
        sa.Column("order_id", sa.String(), nullable=True),
        sa.Column("seed", sa.String(), nullable=False),
        sa.Column("ids", sa.String(), nullable=False),
        sa.Column("states", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("course_no", name="pk_checkpoint_course"),
    )
    op.create_index("ix_checkpoint_course_dataset", "checkpoint_course", ["dataset_id", "stage"])


def _stems(pairs: Iterable[Any], numbers: dict[Key, int]) -> Iterable[dict[str, Any]]:
    made: dict[int, dict[str, list[int]]] = defaultdict(lambda: {kind: [] for kind in _PRODUCTS})
    for row in pairs:
        made[numbers[row.stem_id, row.stem_kind]][row.kind].append(numbers[row.artifact_id, row.kind])
    for number, held in made.items():
        yield {"number": number, **{kind: np.array(held[kind], dtype="<i4").tobytes() for kind in _PRODUCTS}}


def _courses(states: Iterable[Any], numbers: dict[Key, int]) -> Iterable[dict[str, Any]]:
    courses: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in states:
        courses[row.stage, row.dataset_id, row.order_id, row.seed].append(row)
    for course_no, ((stage, dataset, order, seed), members) in enumerate(courses.items(), start=1):
        packed = [
            (numbers[m.checkpoint_id, "checkpoint"], numbers.get((m.init_from, "checkpoint"), 0), m.cursor)
            for m in members
        ]
        yield {
            "course_no": course_no, "stage": stage, "dataset_id": dataset, "order_id": order, "seed": seed,
            "ids": ",".join(m.checkpoint_id for m in members), "states": np.array(packed, dtype=_STATE).tobytes(),
        }  # fmt: skip


def _rows(statement: str) -> list[Any]:
    return list(op.get_bind().execute(sa.text(statement)).all())


def _insert(table: sa.TableClause, rows: Iterable[dict[str, Any]]) -> None:
    if held := list(rows):
        op.get_bind().execute(sa.insert(table), held)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
