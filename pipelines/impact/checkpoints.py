"""How checkpoints relate to clips: steps are computed once a data order, then looked up by every cursor on it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.exposure.uses import ClipUses
from pipelines.exposure.verdict import Verdict
from pipelines.impact.model import AffectedCheckpoint
from pipelines.ledger.exposures import StateRow

MOST_USES = 50_000  # counted one by one; of more, a question only learns which checkpoints saw any
_Order = tuple[str, int, str]  # order id, seed, stage


class _Own(NamedTuple):
    """Uses by a checkpoint's own stage; the numbers are None when they were not counted."""

    saw: bool
    uses: int | None = 0
    first_step: int | None = None
    last_step: int | None = None


def affected_checkpoints(rows: Sequence[StateRow], uses: ClipUses) -> list[AffectedCheckpoint]:
    """Every state of a line that trained on a dataset with the clips, with its verdict, by checkpoint id."""
    uses.load_plans(rows)
    ends: dict[_Order, tuple[StateRow, int]] = {}
    for row in rows:
        if row.order_id is not None and uses.samples(row.dataset_id):
            key = (row.order_id, row.seed, row.stage)
            ends[key] = (row, max(row.cursor, ends[key][1] if key in ends else 0))
    counted = sum(uses.most_uses(row, end) for row, end in ends.values()) <= MOST_USES
    if counted:
        steps = {key: uses.steps(row, cursor=end) for key, (row, end) in ends.items()}
        own = {
            row.checkpoint_id: _counted(steps.get((row.order_id or "", row.seed, row.stage), []), row) for row in rows
        }
    else:
        low = _lowest_cursors(rows)
        firsts = {key: _first_below(uses, row, end, low[key]) for key, (row, end) in ends.items()}
        own = {row.checkpoint_id: _noticed(firsts.get((row.order_id or "", row.seed, row.stage)), row) for row in rows}
    return _classed(rows, own, counted)


def _counted(steps: Sequence[int], row: StateRow) -> _Own:
    count = bisect.bisect_left(steps, row.cursor)
    return _Own(True, count, steps[0], steps[count - 1]) if count else _Own(False)


def _noticed(first: float | None, row: StateRow) -> _Own:
    saw = first is not None and first < row.cursor
    return _Own(saw, None if saw else 0)


def _lowest_cursors(rows: Sequence[StateRow]) -> dict[_Order, int]:
    low: dict[_Order, int] = {}
    for row in rows:
        if row.order_id is not None:
            key = (row.order_id, row.seed, row.stage)
            low[key] = min(row.cursor, low.get(key, row.cursor))
    return low


def _first_below(uses: ClipUses, row: StateRow, end: int, enough: int) -> float:
    """The first step that used any sample, or some early one before `enough`; infinite when none before `end`."""
    first = math.inf
    for sample in uses.samples(row.dataset_id):
        places = uses.places(row, sample, end)
        first = min(first, places[0].step if places else math.inf)
        if first < enough:
            break
    return first


def _classed(rows: Sequence[StateRow], own: dict[str, _Own], counted: bool) -> list[AffectedCheckpoint]:
    by_id = {row.checkpoint_id: row for row in rows}
    before: dict[str, tuple[int, str | None]] = {}  # uses by earlier stages, and the nearest checkpoint that saw

    def inherited(row: StateRow) -> tuple[int, str | None]:
        line = [row]  # a loop, since a line may be long
        while line[-1].checkpoint_id not in before and line[-1].init_from in by_id and len(line) <= len(rows):
            line.append(by_id[line[-1].init_from])  # type: ignore[index]
        for state in reversed(line):
            if state.checkpoint_id in before:
                continue
            parent = state.init_from if state.init_from in by_id else None
            if parent is None:
                before[state.checkpoint_id] = (0, None)
            else:
                count, through = before.get(parent, (0, None))
                saw = own[parent]
                before[state.checkpoint_id] = (count + (saw.uses or 0), parent if saw.saw else through)
        return before[row.checkpoint_id]

    found = []
    for row in rows:
        count, through = inherited(row)
        mine = own[row.checkpoint_id]
        verdict = Verdict.SAW if mine.saw else Verdict.DESCENDS if through else Verdict.CONTAINS
        found.append(
            AffectedCheckpoint(
                artifact_id=row.checkpoint_id,
                verdict=verdict,
                stage=row.stage,
                dataset_id=row.dataset_id,
                steps=row.cursor,
                uses=mine.uses,
                first_step=mine.first_step,
                last_step=mine.last_step,
                inherited=count if counted or through is None else None,
                through=through,
                init_from=row.init_from,
            )
        )
    return found
