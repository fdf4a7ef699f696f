"""How checkpoints relate to clips: told once a course and cursor, then carried along lines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import ClipUses, Tally
from pipelines.impact.rows import AffectedCheckpoints, strength
from pipelines.ledger.trained import Numbers, TrainedStates, hops

MOST_DRAWS = 50_000  # computed one by one; beyond that, a question only learns which checkpoints saw any


def affected_checkpoints(states: TrainedStates, uses: ClipUses) -> AffectedCheckpoints:
    """Every state of a line that trained on a dataset with the clips, with its verdict."""
    cursors, number = np.unique(states.cursor, return_inverse=True)
    keys, row_key = np.unique(states.course * max(1, len(cursors)) + number, return_inverse=True)
    by_course: dict[int, list[int]] = {}  # cursors, ascending as the keys are
    for course, cursor in zip(*(part.tolist() for part in np.divmod(keys, max(1, len(cursors)))), strict=True):
        by_course.setdefault(course, []).append(int(cursors[cursor]))
    asked = {n for n in by_course if uses.holds(states.courses[n].dataset_id)}
    uses.load_plans(states.courses[n] for n in asked)
    counted = _countable(states, uses, asked, by_course)
    told: list[Tally | None] = []
    saw: list[bool] = []
    for course, ends in by_course.items():
        if course not in asked:
            told += [None] * len(ends)
            saw += [False] * len(ends)
        elif counted:
            tallies = uses.tally(states.courses[course], ends)
            told += tallies
            saw += [tally.any for tally in tallies]
        else:
            first = uses.first_step(states.courses[course], ends[-1], ends[0])
            told += [None] * len(ends)
            saw += [first < end for end in ends]
    own = np.array(saw, dtype=np.bool_)[row_key]
    through = _nearest_before(states.parent, own)
    return AffectedCheckpoints(
        states=states,
        strength=strength(own, through != len(states.parent)),
        through=through,
        tally=row_key,
        tallies=told if counted else None,
    )


def _countable(states: TrainedStates, uses: ClipUses, asked: set[int], by_course: dict[int, list[int]]) -> bool:
    """Whether the draws to compute are few enough."""
    draws = 0
    for n in asked:
        draws += uses.most_draws(states.courses[n], len(by_course[n]), MOST_DRAWS)
        if draws > MOST_DRAWS:
            return False
    return True


def _nearest_before(parent: Numbers, saw: NDArray[np.bool_]) -> Numbers:
    """Of each checkpoint the nearest before it that saw (or no row)."""
    none = len(parent)
    start = np.append(parent, none)
    nearest = np.where(np.append(saw, False)[start], start, none)
    for hop in hops(parent):
        nearest = np.where(nearest != none, nearest, nearest[hop])
    return nearest[:-1]
