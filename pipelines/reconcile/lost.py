"""Attempts and pipeline runs that are open in the ledger and run nowhere."""

from __future__ import annotations

from pathlib import Path

from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger
from pipelines.ledger.process import host_name, is_alive
from pipelines.processes import kill_leftovers, survivors
from pipelines.reconcile.findings import Finding, FindingKind


def reconcile_lost(ledger: Ledger, *, apply: bool) -> list[Finding]:
    """Close what is lost, and end what an attempt of this host has left alive."""
    attempts, runs = ledger.lost()
    found = [
        Finding(
            kind=FindingKind.LOST_ATTEMPT, subject=each, says="the claim that it ran under has ended",
            repair="closed as lost", repaired=apply,
        )
        for each in attempts
    ]  # fmt: skip
    found += [
        Finding(
            kind=FindingKind.LOST_RUN, subject=each, says="the process that conducted it is gone",
            repair="closed as lost", repaired=apply,
        )
        for each in runs
    ]  # fmt: skip
    left = [process for each in attempts if (process := _left(ledger, each, apply)) is not None]
    if apply:
        ledger.reap()
    return found + left


def _left(ledger: Ledger, attempt_id: str, apply: bool) -> Finding | None:
    attempt = ledger.attempt(attempt_id)
    if attempt.launcher != LocalLauncher.name or attempt.host != host_name():
        return None  # a cluster job may go on: whoever runs the stage next attaches to it
    if attempt.pipeline_run_id is not None and is_alive(ledger.runner_of(attempt.pipeline_run_id)):
        return None  # it will find out by itself that its claim is gone
    pids = ", ".join(str(p.pid) for p in survivors(Path(attempt.work_dir)))
    if not pids:
        return None
    if apply:
        kill_leftovers(Path(attempt.work_dir))
    return Finding(
        kind=FindingKind.LEFT_PROCESS, subject=attempt_id, says=f"processes {pids} of this lost attempt are alive",
        repair="killed", repaired=apply,
    )  # fmt: skip
