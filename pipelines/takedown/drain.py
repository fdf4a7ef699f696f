"""Drains running work that reads withdrawn artifacts, or that keeps clips out by a block list older than the case."""

from __future__ import annotations

import time
from collections.abc import Callable

from m4v.core.errors import InfrastructureError, InputError
from pipelines.ledger import AttemptRow, Ledger, Status
from pipelines.takedown.unfinished import reads

POLL_S = 0.5


def concerned(ledger: Ledger) -> list[AttemptRow]:
    """Running attempts that must stop: those that read a withdrawn artifact, and those that keep clips out by a block
    list which has grown since they were begun."""
    withdrawn = frozenset(row.artifact_id for row in ledger.withdrawals())
    inputs, blocked_at = ledger.running_inputs(), ledger.blocked_at()
    return [
        attempt
        for attempt in ledger.attempts(status=Status.RUNNING, limit=None)
        if reads(attempt, inputs.get(attempt.attempt_id, {}).values(), withdrawn, blocked_at)
    ]


def drain_concerned(
    ledger: Ledger,
    takedown_id: str,
    requested_by: str,
    attempts: list[AttemptRow],
    wait_s: float,
    tell: Callable[[str], None],
) -> list[AttemptRow]:
    """Ask these attempts to stop and wait until they have; returns them as they ended.

    Raises InfrastructureError when one still runs after `wait_s` seconds: what it makes could not be recorded, but
    it still reads the clips.
    """
    for attempt in attempts:
        reason = f"takedown {takedown_id} withdrew what it reads"
        try:
            ledger.request_drain(
                stage_key=attempt.stage_key, reason=reason, requested_by=requested_by, takedown_id=takedown_id
            )
            tell(f"draining {attempt.stage} (attempt {attempt.attempt_id})")
        except InputError:
            continue  # nobody holds its claim any more: it is dead, and `reap` says so
    deadline = time.monotonic() + wait_s
    while True:
        ledger.reap()
        ended = [ledger.attempt(attempt.attempt_id) for attempt in attempts]
        left = [attempt for attempt in ended if attempt.status is Status.RUNNING]
        if not left:
            return ended
        if time.monotonic() >= deadline:
            raise InfrastructureError(
                f"{len(left)} attempts that read the clips are still running", value=left[0].attempt_id,
                where=left[0].stage, next_step="m4v runs cancel it, then the same command goes on here",
            )  # fmt: skip
        time.sleep(POLL_S)
