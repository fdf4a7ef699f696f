"""States of all checkpoints as columns, and those of lines that trained on some datasets among them."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, String, cast, func, select
from sqlalchemy.orm import Session

from pipelines.ledger import schema
from pipelines.ledger.schema_exposure import CheckpointExposure

Numbers = NDArray[np.int64]


class Course(NamedTuple):
    """What decides the draws of a stage: checkpoints of one course differ in their cursors alone."""

    stage: str
    dataset_id: str | None
    order_id: str | None
    seed: int


@dataclass(frozen=True, slots=True)
class TrainedStates:
    """Checkpoints by id. `course` holds places in `courses`; `parent` the row of the checkpoint that one started
    from, or the number of rows when that is not among them."""

    courses: list[Course]
    checkpoint_ids: list[str]
    init_from: list[str | None]
    course: Numbers
    cursor: Numbers
    parent: Numbers


def trained_states(session: Session, dataset_ids: Collection[str]) -> tuple[TrainedStates, list[str]]:
    """Recorded checkpoints whose line trained on one of these datasets; and the ids of recorded checkpoints whose
    state the ledger does not have."""
    artifact = schema.Artifact
    every = _all_states(session)
    recorded = session.scalar(select(joined(session, artifact.artifact_id)).where(artifact.kind == "checkpoint"))
    # A checkpoint counts once its run is committed; its state is recorded a moment before.
    known = set(recorded.split(",")) if recorded else set()
    own = np.array([course.dataset_id in dataset_ids for course in every.courses], dtype=np.bool_)
    reached = any_before(np.append(own[every.course], False), every.parent)
    kept = [i for i in np.flatnonzero(reached).tolist() if every.checkpoint_ids[i] in known]
    kept.sort(key=every.checkpoint_ids.__getitem__)
    return _chosen(every, kept), sorted(known.difference(every.checkpoint_ids))


def any_before(flags: NDArray[np.bool_], parent: Numbers) -> NDArray[np.bool_]:
    """Of each row, whether it or any row before it on its line has a flag; the last flag stands for no row."""
    found = flags.copy()
    for hop in hops(parent):
        found |= found[hop]
    return found[:-1]


def hops(parent: Numbers) -> list[Numbers]:
    """The rows 1, 2, 4, … before each row, with a last row that stands for none and is before itself."""
    none = len(parent)
    hop = np.append(parent, none)
    found: list[Numbers] = []
    while (hop != none).any() and len(found) <= none.bit_length():  # a ring, which no run can make, ends here
        found.append(hop)
        hop = hop[hop]
    return found


def _all_states(session: Session) -> TrainedStates:
    # One row a course: thousands of rows take far longer to fetch than to find.
    state = CheckpointExposure
    key = (state.dataset_id, state.order_id, state.stage, state.seed)
    columns = (state.checkpoint_id, cast(state.cursor, String), func.coalesce(state.init_from, ""))
    rows = session.execute(select(*key, *(joined(session, c) for c in columns)).group_by(*key)).all()
    found = [(ids.split(","), inits.split(",")) for *_, ids, _, inits in rows]
    checkpoint_ids = list(itertools.chain.from_iterable(ids for ids, _ in found))
    starts = list(itertools.chain.from_iterable(inits for _, inits in found))
    count = len(checkpoint_ids)
    place = dict(zip(checkpoint_ids, range(count), strict=True))
    return TrainedStates(
        courses=[Course(stage, dataset, order, int(seed)) for dataset, order, stage, seed, *_ in rows],
        checkpoint_ids=checkpoint_ids,
        init_from=[start or None for start in starts],
        course=np.repeat(np.arange(len(rows)), [len(ids) for ids, _ in found]),
        cursor=np.fromstring(",".join(row[5] for row in rows), dtype=np.int64, sep=","),
        parent=np.fromiter(map(place.get, starts, itertools.repeat(count)), dtype=np.int64, count=count),
    )


def _chosen(every: TrainedStates, rows: list[int]) -> TrainedStates:
    number = np.full(len(every.parent) + 1, len(rows))
    number[rows] = np.arange(len(rows))
    kept = np.array(rows, dtype=np.int64)
    return TrainedStates(
        courses=every.courses,
        checkpoint_ids=[every.checkpoint_ids[i] for i in rows],
        init_from=[every.init_from[i] for i in rows],
        course=every.course[kept],
        cursor=every.cursor[kept],
        parent=number[every.parent[kept]],
    )


def joined(session: Session, column: ColumnElement[str] | Any) -> Any:
    """Aggregate of texts without commas as one text."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    return func.group_concat(column) if sqlite else func.string_agg(column, ",")
