"""How checkpoints relate to clips: uses are computed once a course and cursor, then added up along lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure.uses import ClipUses
from pipelines.exposure.verdict import Verdict
from pipelines.impact.model import AffectedCheckpoint
from pipelines.ledger.trained import Numbers, TrainedStates, hops
from training.timetable import Uses

MOST_DRAWS = 50_000  # computed one by one; beyond that, a question only learns which checkpoints saw any


@dataclass(frozen=True, slots=True)
class _Own:
    """Uses by the own stage of each checkpoint; `uses` is None when they were not counted, only noticed."""

    saw: NDArray[np.bool_]
    uses: Numbers | None
    first_step: Numbers
    last_step: Numbers


def affected_checkpoints(states: TrainedStates, uses: ClipUses) -> list[AffectedCheckpoint]:
    """Every state of a line that trained on a dataset with the clips, with its verdict, by checkpoint id."""
    cursors, number = np.unique(states.cursor, return_inverse=True)
    keys, row_key = np.unique(states.course * max(1, len(cursors)) + number, return_inverse=True)
    by_course: dict[int, list[int]] = {}  # cursors, ascending as the keys are
    for course, cursor in zip(*(part.tolist() for part in np.divmod(keys, max(1, len(cursors)))), strict=True):
        by_course.setdefault(course, []).append(int(cursors[cursor]))
    asked = {n for n in by_course if uses.holds(states.courses[n].dataset_id)}
    uses.load_plans(states.courses[n] for n in asked)
    told: list[Uses | None] = []
    draws = 0
    for n in asked:
        draws += uses.most_draws(states.courses[n], len(by_course[n]), MOST_DRAWS)
        if draws > MOST_DRAWS:
            break
    counted = draws <= MOST_DRAWS
    for course, ends in by_course.items():
        if course not in asked:
            told += [None] * len(ends)
        elif counted:
            told += uses.tally(states.courses[course], ends)
        else:
            first = uses.first_step(states.courses[course], ends[-1], ends[0])
            told += [Uses(1, 0, 0) if first < end else None for end in ends]
    table = np.array([t or (0, -1, -1) for t in told], dtype=np.int64).reshape(-1, 3)[row_key]
    own = _Own(table[:, 0] > 0, table[:, 0] if counted else None, table[:, 1], table[:, 2])
    return _classed(states, own)


def _classed(states: TrainedStates, own: _Own) -> list[AffectedCheckpoint]:
    inherited, through = _before(states.parent, own)
    none = len(states.parent)
    ids = [*states.checkpoint_ids, None]
    saw, descends = own.saw.tolist(), (through != none).tolist()
    columns = (
        states.checkpoint_ids,
        [Verdict.SAW if s else Verdict.DESCENDS if d else Verdict.CONTAINS for s, d in zip(saw, descends, strict=True)],
        [states.courses[c].stage for c in states.course.tolist()],
        [states.courses[c].dataset_id for c in states.course.tolist()],
        states.cursor.tolist(),
        _where(own.saw, None, 0) if own.uses is None else own.uses.tolist(),
        _where(own.saw & (own.uses is not None), own.first_step, None),
        _where(own.saw & (own.uses is not None), own.last_step, None),
        _where(through != none, None, 0) if own.uses is None else inherited.tolist(),
        [ids[t] for t in through.tolist()],
        states.init_from,
    )
    return list(map(AffectedCheckpoint._make, zip(*columns, strict=True)))


def _where(chosen: NDArray[np.bool_], value: Numbers | None, other: int | None) -> list[int | None]:
    taken = np.full(len(chosen), other, dtype=object)
    taken[chosen] = None if value is None else value[chosen]
    return list(taken)


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
