"""States of all checkpoints as columns, and those of lines that trained on some datasets among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from pipelines.ledger.courses import Course, read_courses, unread_checkpoints
from pipelines.ledger.numbers import ids_of

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainedStates:
    """Checkpoints by course. `course` holds places in `courses`, `number` those of `ArtifactNumber`; `parent` the row
    of the checkpoint that one started from, or the number of rows when that is not among them."""

    courses: list[Course]
    checkpoint_ids: list[str]
    init_from: list[str | None]
    number: Numbers
    course: Numbers
    cursor: Numbers
    parent: Numbers


def trained_states(session: Session, dataset_ids: Collection[str]) -> tuple[TrainedStates, list[str]]:
    """Recorded checkpoints whose line trained on one of these datasets, in the order of their courses; and the ids of
    recorded checkpoints whose state the ledger does not have."""
    every = read_courses(session)
    count, numbers, starts = len(every.checkpoint_ids), every.states["number"], every.states["start"]
    row_of = np.full(max(int(numbers.max(initial=0)), int(starts.max(initial=0))) + 1, count)
    row_of[numbers] = np.arange(count)
    parent = row_of[starts]
    own = np.array([course.dataset_id in dataset_ids for course in every.courses], dtype=np.bool_)
    kept = np.flatnonzero(any_before(np.append(own[every.course], False), parent))
    place = np.full(count + 1, len(kept))
    place[kept] = np.arange(len(kept))
    ids = every.checkpoint_ids
    states = TrainedStates(
        courses=every.courses,
        checkpoint_ids=ids if len(kept) == count else [ids[i] for i in kept.tolist()],
        init_from=_named(session, starts[kept], numbers, ids, parent[kept]),
        number=numbers[kept].astype(np.int64),
        course=every.course[kept],
        cursor=every.states["cursor"][kept],
        parent=place[parent[kept]],
    )
    return states, unread_checkpoints(session, count)


def _named(session: Session, starts: Numbers, numbers: Numbers, ids: list[str], rows: Numbers) -> list[str | None]:
    """Ids of the checkpoints that others started from; few of those have no state themselves."""
    strange = np.unique(starts[(starts != 0) & (rows == len(ids))]).tolist()
    names = ids_of(session, strange) if strange else {}
    here: list[str | None] = [*ids, None]
    named = [here[row] for row in rows.tolist()]
    if names:
        named = [name or names.get(start) for name, start in zip(named, starts.tolist(), strict=True)]
    return named


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
