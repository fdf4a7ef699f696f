"""What is done about a step whose loss or gradient went wrong: take, skip, roll back or stop. Torch-free.

Every decision follows from the rows of the metrics behind it and the step's own numbers, which are equal on all
ranks, so that a resumed run decides alike. A step without an update has `skipped`, the reason, in its row.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from m4v.core.canonical import canonical_json
from m4v.core.config import FrozenModel
from m4v.core.errors import M4VError
from m4v.core.storage import Storage
from training.config import GuardConfig

SKIPPED = "skipped"
ROLL_BACKS = "roll_backs"
Action = Literal["take", "skip", "roll_back", "stop"]
Row = Mapping[str, object]


@dataclass(frozen=True)
class Verdict:
    """What to do about a step, and why; without a reason nothing is wrong."""

    action: Action = "take"
    reason: str = ""


class Guard:
    """Judges the steps of one stage; `rows` are those of the steps behind it, oldest first."""

    def __init__(self, config: GuardConfig, rows: Iterable[Row] = ()) -> None:
        self._config = config
        self._seen: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=config.window))
        self.skipped = 0
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Count a finished step."""
        if SKIPPED in row:
            self.skipped += 1
            return
        loss, norm = row["loss"], row["grad_norm"]
        if isinstance(loss, float | int) and isinstance(norm, float | int):
            self._seen[str(row["media"])].append((loss, norm))

    def judge(self, media: str, loss: float | None, norm: float) -> Verdict:
        """The verdict on a step before its update; `loss` is None for one without a sample that trains."""
        if loss is None:
            return Verdict("skip", "no sample of the step trains")
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                return self._bounded(self._config.not_finite, f"{name} is not finite")
        reason = self._spike(media, loss, norm) if self._config.spike != "ignore" else ""
        return self._bounded(self._config.spike, reason) if reason else Verdict()

    def _spike(self, media: str, loss: float, norm: float) -> str:
        """In what a step is far above those before it; empty when it is not."""
        seen = self._seen[media]
        if len(seen) < self._config.settled:
            return ""
        limits = (("loss", loss, 0, self._config.spike_factor), ("gradient norm", norm, 1, self._config.norm_factor))
        for name, value, place, factor in limits:
            usual = statistics.median(pair[place] for pair in seen)
            if factor and value > factor * usual:
                return f"{name} {value:.4g} is {value / usual:.1f} times the usual {usual:.4g}" if usual else name
        return ""

    def _bounded(self, action: Literal["ignore", "stop", "skip", "roll_back"], reason: str) -> Verdict:
        if action in ("skip", "roll_back") and self.skipped >= self._config.most:
            return Verdict("stop", f"{reason}, after {self.skipped} steps without an update (guard.most)")
        return Verdict("take" if action == "ignore" else action, reason)


class RollBack(FrozenModel):
    """`roll_backs/STEP.json` of the resume state: at `step`, training went back to its last save, and takes no update
    from steps `left_out` any more."""

    schema_version: int = 1
    step: int
    left_out: tuple[int, ...]
    reason: str
    attempt_id: str


class RolledBack(M4VError):
    """Leaves the loop of a trainer whose stage goes on from its last save, without steps `left_out`. Never leaves the
    stage."""

    def __init__(self, step: int, left_out: tuple[int, ...], reason: str) -> None:
        super().__init__(f"step {step} rolls the stage back: {reason}")
        self.step, self.left_out, self.reason = step, left_out, reason


class RollBacks:
    """The roll-backs of a stage run. One that was recorded holds whatever happens after: a kill between record and
    return to the save changes nothing."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def record(self, decision: RollBack) -> None:
        """Keep a decision. Rank 0, before any rank goes back."""
        self._storage.write_bytes(f"{ROLL_BACKS}/{decision.step:010d}.json", canonical_json(decision.canonical()))

    def all(self) -> list[RollBack]:
        """Decisions by step."""
        paths = [file.path for file in self._storage.files(ROLL_BACKS)]
        return [RollBack.model_validate_json(self._storage.read_bytes(path)) for path in paths]

    def left_out(self) -> dict[int, str]:
        """Steps that take no update, and why."""
        return {
            step: f"left out by the roll-back at step {decision.step}: {decision.reason}"
            for decision in self.all()
            for step in decision.left_out
        }


def steps_to_leave_out(step: int, save: int, rewind: int) -> tuple[int, ...]:
    """Steps whose data a roll-back at `step` leaves out: the last `rewind`, none before the `save` gone back to."""
    return tuple(range(max(save, step - rewind + 1), step + 1))
