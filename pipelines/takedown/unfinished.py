"""What work that ended without a run left of withdrawn artifacts: resume state, staging, scratch, downloads. It can
never be resumed, and holds the clips."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from m4v.core.errors import InfrastructureError, InputError
from m4v.core.storage import Storage
from pipelines import stages
from pipelines.gc.leftovers import Leftover, attempt_leftover, remove_claimed, state_leftover
from pipelines.ledger import AttemptRow, Ledger, Status
from pipelines.rerun_folders import rerun_folders
from pipelines.takedown.versions import delete_versions
from pipelines.workspace import Workspace

_WHY = "it read what a takedown withdrew"
BLOCKING = frozenset(spec.name for spec in stages.ALL if spec.takedowns)


def reads(attempt: AttemptRow, inputs: Iterable[str], withdrawn: frozenset[str], blocked_at: datetime | None) -> bool:
    """Whether an attempt had the clips before it: it reads a withdrawn artifact, or keeps clips out by a block list
    which has grown since it was begun."""
    if not withdrawn.isdisjoint(inputs):
        return True
    return attempt.stage in BLOCKING and blocked_at is not None and attempt.started_at <= blocked_at


def delete_unfinished(ledger: Ledger, workspace: Workspace) -> list[Leftover]:
    """Delete what ended attempts left in the store and in this home; returns what went. Running ones are left."""
    withdrawn, blocked_at = frozenset(row.artifact_id for row in ledger.withdrawals()), ledger.blocked_at()

    def concerns(attempt: AttemptRow) -> bool:
        begun = (e for e in ledger.events(subject=attempt.attempt_id) if e.kind == "attempt.begun")
        inputs = {i for event in begun for i in event.payload.get("inputs", {}).values()}
        return attempt.status is not Status.RUNNING and reads(attempt, inputs, withdrawn, blocked_at)

    found = []
    store = Storage(workspace.store_uri)
    for key in store.directories("state"):
        if any(concerns(attempt) for attempt in ledger.attempts(stage_key=key, limit=None)):
            found.append(state_leftover(store, key, _WHY))
    for folder in sorted(p for p in workspace.work_root.glob("*/*") if p.is_dir()):
        attempt = _attempt(ledger, folder)
        if attempt is not None and concerns(attempt):
            left = attempt_leftover(folder, _WHY, attempt.stage_key)
            found += [left] if left is not None else []
    gone = [left for left in found if remove_claimed(ledger, left)]
    for left in gone:
        delete_versions(left.uri)
    return gone


def delete_verified(ledger: Ledger, workspace: Workspace) -> list[Path]:
    """Delete what verifications made of withdrawn artifacts and kept in this home; returns the directories.

    Raises InfrastructureError while one is at work on them: it makes the clips' bytes anew.
    """
    withdrawn = {(row.artifact_id, str(row.kind)) for row in ledger.withdrawals()}
    found = [folder for folder in rerun_folders(workspace.home) if not withdrawn.isdisjoint(folder.inputs)]
    for folder in found:
        if folder.is_alive:
            raise InfrastructureError(
                "a verification (m4v runs rerun --verify) reads the clips", value=folder.path.name,
                next_step="wait for its end or stop it, then the same command goes on here",
            )  # fmt: skip
    for folder in found:
        folder.remove()
    return [folder.path for folder in found]


def _attempt(ledger: Ledger, folder: Path) -> AttemptRow | None:
    try:
        return ledger.attempt(folder.name)
    except InputError:
        return None  # of a ledger that was lost: garbage collection goes by its age
