"""How checkpoints relate to clips: told once a course and cursor, then carried along lines."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import ClipUses, CourseUses
from pipelines.impact.rows import AffectedCheckpoints, strength
from pipelines.ledger.trained import Numbers, TrainedStates, hops

_NEVER = np.iinfo(np.int64).max
MOST_DRAWS = 50_000  # computed one by one; beyond that, a question only learns which checkpoints saw any


def affected_checkpoints(states: TrainedStates, uses: ClipUses) -> AffectedCheckpoints:
    """Every state of a line that trained on a dataset with the clips, with its verdict."""
    asked = {n: ends for n, ends in _cursors(states).items() if uses.holds(states.courses[n].dataset_id)}
    uses.load_plans(states.courses[n] for n in asked)
    draws = uses.most_draws(((states.courses[n], len(ends)) for n, ends in asked.items()), MOST_DRAWS)
    counted: dict[int, CourseUses] | None = None
    if draws <= MOST_DRAWS:
        counted = {n: uses.of_course(states.courses[n]) for n in asked}
    least = np.full(len(states.courses), _NEVER)  # cursor of a course from which on it saw
    for n, ends in asked.items():
        if counted is not None:
            first = counted[n].first_of(ends)
            least[n] = _NEVER if first is None else first
        else:
            step = uses.first_step(states.courses[n], ends[-1], ends[0])
            least[n] = _NEVER if math.isinf(step) else step + 1
    own = states.cursor >= least[states.course]
    through = _nearest_before(states.parent, own)
    return AffectedCheckpoints(
        states=states, strength=strength(own, through != len(states.parent)), through=through, uses=counted
    )


def _cursors(states: TrainedStates) -> dict[int, list[int]]:
    """The different cursors of each course, ascending."""
    order = np.lexsort((states.cursor, states.course))
    course, cursor = states.course[order], states.cursor[order]
    new = np.append(True, (np.diff(course) != 0) | (np.diff(cursor) != 0))[: len(order)]
    found: dict[int, list[int]] = {}
    for n, end in zip(course[new].tolist(), cursor[new].tolist(), strict=True):
        found.setdefault(n, []).append(end)
    return found


def _nearest_before(parent: Numbers, saw: NDArray[np.bool_]) -> Numbers:
    """Of each checkpoint the nearest before it that saw (or no row)."""
    none = len(parent)
    start = np.append(parent, none)
    nearest = np.where(np.append(saw, False)[start], start, none)
    for hop in hops(parent):
        nearest = np.where(nearest != none, nearest, nearest[hop])
    return nearest[:-1]
