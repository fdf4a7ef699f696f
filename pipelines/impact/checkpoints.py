"""How checkpoints relate to clips: uses are computed once a course and cursor, then added up along lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import ClipUses, Tally
from pipelines.impact.rows import AffectedCheckpoints, strength
from pipelines.ledger.trained import Numbers, TrainedStates, hops

MOST_DRAWS = 50_000  # computed one by one; beyond that, a question only learns which checkpoints saw any


@dataclass(frozen=True, slots=True)
class _Own:
    """Uses by the own stage of each checkpoint; `uses` is None when they were not counted, only noticed."""

    saw: NDArray[np.bool_]
    uses: Numbers | None
    tallies: list[Tally | None]


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
            saw += [tally.number > 0 for tally in tallies]
        else:
            first = uses.first_step(states.courses[course], ends[-1], ends[0])
            told += [None] * len(ends)
            saw += [first < end for end in ends]
    numbers = np.array([tally.number if tally else 0 for tally in told], dtype=np.int64)[row_key]
    own = _Own(np.array(saw, dtype=np.bool_)[row_key], numbers if counted else None, told)
    return _classed(states, own, row_key)


def _countable(states: TrainedStates, uses: ClipUses, asked: set[int], by_course: dict[int, list[int]]) -> bool:
    """Whether the draws to compute are few enough."""
    draws = 0
    for n in asked:
        draws += uses.most_draws(states.courses[n], len(by_course[n]), MOST_DRAWS)
        if draws > MOST_DRAWS:
            return False
    return True


def _classed(states: TrainedStates, own: _Own, row_key: Numbers) -> AffectedCheckpoints:
    inherited, through = _before(states.parent, own)
    return AffectedCheckpoints(
        states=states,
        strength=strength(own.saw, through != len(states.parent)),
        uses=own.uses,
        inherited=None if own.uses is None else inherited,
        through=through,
        tally=row_key,
        tallies=own.tallies,
    )


def _before(parent: Numbers, own: _Own) -> tuple[Numbers, Numbers]:
    """Of each checkpoint: uses by the stages before its own, and the nearest before it that saw (or no row)."""
    none = len(parent)
    saw = np.append(own.saw, False)
    start = np.append(parent, none)
    total = np.append(np.zeros(none, dtype=np.int64) if own.uses is None else own.uses, 0)[start]
    nearest = np.where(saw[start], start, none)
    for hop in hops(parent):
        total = total + total[hop]
        nearest = np.where(nearest != none, nearest, nearest[hop])
    return total[:-1], nearest[:-1]
