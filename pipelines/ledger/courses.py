"""Courses: recorded checkpoints with what decides their draws, packed as `CheckpointCourse` keeps them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from pipelines.ledger import schema
from pipelines.ledger.clip_load import next_number, table_of
from pipelines.ledger.database import AS_BYTES
from pipelines.ledger.members import ids_in
from pipelines.ledger.numbers import Key, numbers_of
from pipelines.ledger.schema_exposure import CheckpointCourse, CheckpointExposure

CHECKPOINT = "checkpoint"
STATE = np.dtype([("number", "<i4"), ("start", "<i4"), ("cursor", "<i8")])
_NONE = 0  # number of no checkpoint
_course, _artifact = table_of(CheckpointCourse).c, table_of(schema.Artifact).c
_COURSES = select(
    _course.stage, _course.dataset_id, _course.order_id, _course.seed, _course.ids, _course.states
).order_by(_course.course_no)
_RECORDED = select(func.count()).where(_artifact.kind == CHECKPOINT)


class Course(NamedTuple):
    """What decides the draws of a stage: checkpoints of one course differ in their cursors alone."""

    stage: str
    dataset_id: str | None
    order_id: str | None
    seed: int


class PackedStates(NamedTuple):
    """Every recorded checkpoint that has a state; `course` holds places in `courses`, numbers are those of
    `ArtifactNumber`."""

    courses: list[Course]
    checkpoint_ids: list[str]
    course: NDArray[np.int64]
    states: NDArray[Any]


def read_courses(session: Session) -> PackedStates:
    courses: list[Course] = []
    ids: list[str] = []
    packed: list[bytes] = []
    for stage, dataset, order, seed, named, states in session.execute(_COURSES, execution_options=AS_BYTES).all():
        courses.append(Course(stage, dataset, order, int(seed)))
        ids.append(named)
        packed.append(states)
    counts = [len(states) // STATE.itemsize for states in packed]
    return PackedStates(
        courses=courses,
        checkpoint_ids=",".join(ids).split(",") if ids else [],
        course=np.repeat(np.arange(len(courses)), counts),
        states=np.frombuffer(b"".join(packed), dtype=STATE),
    )


def record_courses(session: Session, checkpoint_ids: Collection[str]) -> None:
    """Add checkpoints to their courses: those that are recorded, have a state, and are not there yet. The caller is
    the only writer."""
    state, artifact = CheckpointExposure, schema.Artifact
    session.flush()
    query = (
        select(state)
        .join(artifact, (artifact.artifact_id == state.checkpoint_id) & (artifact.kind == CHECKPOINT))
        .where(state.checkpoint_id.in_(ids_in(session, checkpoint_ids)))
        .order_by(artifact.recorded_at, artifact.artifact_id)
    )
    of_course: dict[tuple[str, str | None, str | None, str], list[CheckpointExposure]] = defaultdict(list)
    rows = session.scalars(query).all()
    for row in rows:
        of_course[row.stage, row.dataset_id, row.order_id, row.seed].append(row)
    told = [i for r in rows for i in (r.init_from, r.checkpoint_id) if i is not None]
    numbers = numbers_of(session, ((i, CHECKPOINT) for i in told))
    for key, members in of_course.items():
        _extend(session, key, members, numbers)


def _extend(
    session: Session,
    key: tuple[str, str | None, str | None, str],
    members: Sequence[CheckpointExposure],
    numbers: dict[Key, int],
) -> None:
    course = CheckpointCourse
    stage, dataset, order, seed = key
    same = (course.stage == stage, course.seed == seed)
    where = (course.dataset_id.is_not_distinct_from(dataset), course.order_id.is_not_distinct_from(order))
    row = session.scalars(select(course).where(*same, *where)).one_or_none()
    held = set() if row is None else set(row.ids.split(","))
    new = [m for m in members if m.checkpoint_id not in held]
    if not new:
        return
    ids = ",".join(m.checkpoint_id for m in new)
    packed = np.array([_packed(m, numbers) for m in new], dtype=STATE).tobytes()
    if row is None:
        values = {"stage": stage, "dataset_id": dataset, "order_id": order, "seed": seed, "ids": ids, "states": packed}
        session.execute(insert(course).values(course_no=next_number(session, course.course_no), **values))
    else:
        row.ids, row.states = f"{row.ids},{ids}", row.states + packed
        session.flush()


def _packed(row: CheckpointExposure, numbers: dict[Key, int]) -> tuple[int, int, int]:
    start = _NONE if row.init_from is None else numbers[row.init_from, CHECKPOINT]
    return numbers[row.checkpoint_id, CHECKPOINT], start, row.cursor


def unread_checkpoints(session: Session, known: int) -> list[str]:
    """Recorded checkpoints whose state the ledger does not have, sorted; `known` is how many it has."""
    artifact, state = schema.Artifact, CheckpointExposure
    if session.scalar(_RECORDED) == known:
        return []
    query = select(artifact.artifact_id).where(artifact.kind == CHECKPOINT)
    return sorted(session.scalars(query.where(artifact.artifact_id.not_in(select(state.checkpoint_id)))))
