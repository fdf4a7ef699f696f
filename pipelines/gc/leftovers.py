"""What is no artifact and nobody needs: unfinished publishes, resume state, stored items, folders of ended attempts and
verifications, provenance files that no row cites."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from m4v.core.errors import InputError
from m4v.core.items import LAST_USED
from m4v.core.storage import Storage, storage_faults
from pipelines.launchers.slurm_files import is_open
from pipelines.ledger import AttemptRow, ClaimHeld, Ledger, Status
from pipelines.ledger.types import utc_now
from pipelines.provenance.blobs import PROVENANCE
from pipelines.rerun_folders import rerun_folders
from pipelines.settings import RetentionConfig
from pipelines.store import DAY_S, ArtifactStore
from pipelines.workspace import Workspace

DAY = 86_400.0
SCRATCH = ("staging", "scratch", "cache", "result.json")  # what `AttemptRunner` prunes as well
OWNER = "garbage collection"
CLAIM_S = 600.0


class LeftoverKind(StrEnum):
    PUBLISH = "unfinished publish"
    STATE = "resume state"
    ITEMS = "items"
    SCRATCH = "attempt scratch"
    LOGS = "attempt logs"
    PROVENANCE = "provenance file"
    VERIFICATION = "verification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file tree that may go, and why; `stage_key`: whose claim to take first, so that nobody is using it."""

    kind: LeftoverKind
    uri: str
    size_bytes: int
    why: str
    stage_key: str | None = None


def find_leftovers(ledger: Ledger, workspace: Workspace, retention: RetentionConfig) -> list[Leftover]:
    """Everything that retention lets go now; changes nothing."""
    now = utc_now().timestamp()
    return [
        *_publishes(workspace),
        *_states(ledger, workspace, retention, now),
        *_items(workspace, retention, now),
        *_attempts(ledger, workspace, retention, now),
        *_blobs(ledger, workspace, retention, now),
        *_verifications(workspace, retention, now),
    ]


def remove_leftovers(
    ledger: Ledger, workspace: Workspace, retention: RetentionConfig, found: list[Leftover]
) -> list[Leftover]:
    """Delete what was found; returns what went. What came into use since is left."""
    gone = []
    for leftover in found:
        if leftover.kind is LeftoverKind.PUBLISH:
            continue
        if leftover.kind is LeftoverKind.ITEMS:
            done = _remove_items(leftover, retention)
        elif leftover.kind is LeftoverKind.PROVENANCE:
            done = _remove_blob(leftover, retention)
        elif leftover.kind is LeftoverKind.VERIFICATION:
            done = _remove_verification(workspace, leftover)
        else:
            done = remove_claimed(ledger, leftover)
        if done:
            gone.append(leftover)
    if any(leftover.kind is LeftoverKind.PUBLISH for leftover in found):
        ArtifactStore(workspace.store_uri).sweep()
        gone += [f for f in found if f.kind is LeftoverKind.PUBLISH and not Storage(f.uri).exists()]
    return gone


# Unfinished publishes


def _publishes(workspace: Workspace) -> Iterator[Leftover]:
    for place in ArtifactStore(workspace.store_uri).leftovers():
        why = f"untouched for {DAY_S / 3600:.0f} h"
        yield Leftover(kind=LeftoverKind.PUBLISH, uri=place.uri, size_bytes=_size(place), why=why)


# Resume state


def _states(ledger: Ledger, workspace: Workspace, retention: RetentionConfig, now: float) -> Iterator[Leftover]:
    states = Storage(workspace.store_uri)
    for key in states.directories("state"):
        if ledger.holder(key) is not None:
            continue
        attempts = ledger.attempts(stage_key=key, limit=1)
        committed = ledger.find_run(key) is not None
        place = states.child(f"state/{key}")
        touched = _touched(attempts[0]) if attempts else _newest(place)
        idle_days = (now - touched) / DAY
        if committed or idle_days > retention.state_days:
            why = "its run is committed" if committed else f"no attempt for {idle_days:.0f} days"
            yield state_leftover(states, key, why)


def state_leftover(store: Storage, stage_key: str, why: str) -> Leftover:
    """The resume state of a stage key."""
    place = store.child(f"state/{stage_key}")
    return Leftover(kind=LeftoverKind.STATE, uri=place.uri, size_bytes=_size(place), why=why, stage_key=stage_key)


def _touched(attempt: AttemptRow) -> float:
    return max(t.timestamp() for t in (attempt.started_at, attempt.finished_at, attempt.heartbeat_at) if t is not None)


# Items


def _items(workspace: Workspace, retention: RetentionConfig, now: float) -> Iterator[Leftover]:
    if retention.item_days is None:
        return
    items = Storage(workspace.items_uri)
    for step in items.directories():
        for digest in items.directories(step):
            place = items.child(f"{step}/{digest}")
            idle_days = (now - _last_used(place)) / DAY
            if idle_days > retention.item_days:
                why = f"{step}: no stage has used them for {idle_days:.0f} days"
                yield Leftover(kind=LeftoverKind.ITEMS, uri=place.uri, size_bytes=_size(place), why=why)


def _last_used(place: Storage) -> float:
    """When a stage last opened the items of a step, or wrote one."""
    try:
        return place.modified_at(LAST_USED)
    except InputError:
        return _newest(place)  # stored before uses were marked


def _remove_items(leftover: Leftover, retention: RetentionConfig) -> bool:
    place = Storage(leftover.uri)
    if retention.item_days is None or (utc_now().timestamp() - _last_used(place)) / DAY <= retention.item_days:
        return False
    place.delete()
    return True


# Attempts


def _attempts(ledger: Ledger, workspace: Workspace, retention: RetentionConfig, now: float) -> Iterator[Leftover]:
    for folder in sorted(p for p in workspace.work_root.glob("*/*") if p.is_dir()):
        try:
            attempt = ledger.attempt(folder.name)
        except InputError:
            key, touched = None, folder.stat().st_mtime  # of a ledger that was lost
        else:
            if attempt.status is Status.RUNNING:
                continue
            key, touched = attempt.stage_key, _touched(attempt)
        days = (now - touched) / DAY
        if days > retention.log_days:
            yield _folder(LeftoverKind.LOGS, folder, f"ended {days:.0f} days ago", key)
        elif days > retention.work_days and not is_open(folder):
            scratch = attempt_leftover(folder, f"ended {days:.0f} days ago; its logs stay", key)
            yield from () if scratch is None else (scratch,)


def attempt_leftover(folder: Path, why: str, stage_key: str | None) -> Leftover | None:
    """What an attempt left beside its logs; None when it left nothing."""
    if not any((folder / name).exists() for name in SCRATCH):
        return None
    return _folder(LeftoverKind.SCRATCH, folder, why, stage_key)


def _folder(kind: LeftoverKind, folder: Path, why: str, stage_key: str | None) -> Leftover:
    parts = [folder] if kind is LeftoverKind.LOGS else [folder / name for name in SCRATCH]
    size = sum(f.stat().st_size for part in parts for f in _files(part))
    return Leftover(kind=kind, uri=str(folder), size_bytes=size, why=why, stage_key=stage_key)


def _files(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path] if path.is_file() else []


def remove_claimed(ledger: Ledger, leftover: Leftover) -> bool:
    """Delete a leftover under the claim of its stage key: no run can be resuming from it meanwhile. False, and nothing
    is deleted, while one is."""
    if leftover.stage_key is None:
        _remove(leftover)
        return True
    try:
        claim = ledger.claim(leftover.stage_key, OWNER, CLAIM_S)
    except ClaimHeld:
        return False
    try:
        _remove(leftover)
    finally:
        ledger.release(claim)
    return True


def _remove(leftover: Leftover) -> None:
    if leftover.kind is LeftoverKind.STATE:
        Storage(leftover.uri).delete()
        return
    folder = Path(leftover.uri)
    with storage_faults(leftover.uri):
        if leftover.kind is LeftoverKind.LOGS:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.parent.is_dir() and not any(folder.parent.iterdir()):
                folder.parent.rmdir()
            return
        for name in SCRATCH:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


# Provenance


def _blobs(ledger: Ledger, workspace: Workspace, retention: RetentionConfig, now: float) -> Iterator[Leftover]:
    """Files that no row cites: of attempts without a run, whose own record goes with their logs."""
    store = Storage(workspace.store_uri)
    old = {
        f.path.rpartition("/")[2]: f for f in store.list(PROVENANCE) if _days(store, f.path, now) > retention.log_days
    }
    for digest in sorted(old.keys() - ledger.cited_files(old)):
        file = old[digest]
        why = f"no run cites it, and it was kept {_days(store, file.path, now):.0f} days ago"
        uri = f"{store.uri}/{file.path}"
        yield Leftover(kind=LeftoverKind.PROVENANCE, uri=uri, size_bytes=file.size_bytes, why=why)


def _days(store: Storage, path: str, now: float) -> float:
    return (now - store.modified_at(path)) / DAY


def _remove_blob(leftover: Leftover, retention: RetentionConfig) -> bool:
    folder, _, name = leftover.uri.rpartition("/")
    place = Storage(folder)
    if _days(place, name, utc_now().timestamp()) <= retention.log_days:
        return False  # kept again since
    place.delete(name)
    return True


# Verifications


def _verifications(workspace: Workspace, retention: RetentionConfig, now: float) -> Iterator[Leftover]:
    for folder in (f for f in rerun_folders(workspace.home) if not f.is_alive):
        try:
            days = (now - folder.path.stat().st_mtime) / DAY
            size = sum(f.stat().st_size for f in _files(folder.path))
        except FileNotFoundError:
            continue  # another verification swept it just now
        if folder.was_kept and days <= retention.work_days:
            continue
        why = f"kept {days:.0f} days ago" if folder.was_kept else "its process was killed"
        yield Leftover(kind=LeftoverKind.VERIFICATION, uri=str(folder.path), size_bytes=size, why=why)


def _remove_verification(workspace: Workspace, leftover: Leftover) -> bool:
    found = [f for f in rerun_folders(workspace.home) if str(f.path) == leftover.uri and not f.is_alive]
    for folder in found:
        folder.remove()
    return bool(found)


def _size(place: Storage) -> int:
    return sum(f.size_bytes for f in place.list())


def _newest(place: Storage) -> float:
    files = [place.modified_at(f.path) for f in place.list()]
    return max(files, default=place.modified_at("") if place.is_local and place.exists() else 0.0)
