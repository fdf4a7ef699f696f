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
    before = _uses_before(rows, own)
    found = []
    for row in rows:
        inherited, through = before[row.checkpoint_id]
        mine = own[row.checkpoint_id]
        verdict = Verdict.SAW if mine.saw else Verdict.DESCENDS if through else Verdict.CONTAINS
        found.append(
            AffectedCheckpoint(
                row.checkpoint_id, verdict, row.stage, row.dataset_id, row.cursor, mine.uses, mine.first_step,
                mine.last_step, inherited if counted or through is None else None, through, row.init_from,
            )
        )  # fmt: skip
    return found


def _uses_before(rows: Sequence[StateRow], own: dict[str, _Own]) -> dict[str, tuple[int, str | None]]:
    """Of each checkpoint: uses by the stages before its own, and the nearest checkpoint before it that saw."""
    by_id = {row.checkpoint_id: row for row in rows}
    before: dict[str, tuple[int, str | None]] = {}
    for row in rows:
        line: list[StateRow] = []
        state: StateRow | None = row
        while state is not None and state.checkpoint_id not in before and len(line) <= len(rows):
            line.append(state)
            state = by_id.get(state.init_from or "")
        for state in reversed(line):
            parent = state.init_from
            if parent is None or parent not in before:
                before[state.checkpoint_id] = (0, None)
                continue
            count, through = before[parent]
            earlier = own[parent]
            before[state.checkpoint_id] = (count + (earlier.uses or 0), parent if earlier.saw else through)
    return before
