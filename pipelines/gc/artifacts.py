"""Deleting unreachable artifacts: decided and recorded in one transaction, then the bytes, then that they are gone.

A crash leaves marked artifacts, which count as deleted everywhere and which the next collection finishes. Decisions
are made in small batches, so that nobody waits long for bytes that are going.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from m4v.core.artifacts import MANIFEST, ArtifactKind
from m4v.core.errors import InfrastructureError
from m4v.core.storage import Storage, is_temporary, storage_faults, temporary_beside
from pipelines.gc.judge import judge, resumable_since
from pipelines.lease import Lease
from pipelines.ledger import ArtifactRow, Deletion, Ledger
from pipelines.ledger.reach_facts import Key, ReachFacts
from pipelines.ledger.types import utc_now
from pipelines.rerun_folders import rerun_folders
from pipelines.settings import RetentionConfig

CLAIM = "garbage collection"  # stands where stage keys do; one collector at a time
BATCH = 200  # artifacts a decision
LEASE_S, RENEW_S = 900.0, 60.0  # a stopped collector that wakes up again must not find another one's work
POLICY = "unreachable"
_log = logging.getLogger(__name__)


@dataclass
class Collected:
    """What a collection deleted, and what it could not, with the reason."""

    deleted: list[ArtifactRow] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(row.size_bytes for row in self.deleted)


def collect_artifacts(
    ledger: Ledger,
    store_uri: str,
    retention: RetentionConfig,
    *,
    by: str,
    kind: ArtifactKind | None = None,
    home: Path | None = None,
    on_deleted: Callable[[ArtifactRow], None] = lambda _: None,
) -> Collected:
    """Delete every artifact that no root reaches (of one kind, if given), and finish what an earlier collection left.

    What verifications in `home` read now stays. Raises ClaimHeld while another collection runs. What a disk refuses to
    delete stays marked and is reported.
    """
    done = Collected()

    def decide(facts: ReachFacts) -> list[Deletion]:
        facts.verified = verified_now(home) if home is not None else []
        judged = judge(facts, retention, utc_now(), store_uri)
        gone = [j for j in judged if not j.kept and (kind is None or j.kind == kind)]
        return [Deletion(j.artifact_id, j.kind, j.why) for j in gone[:BATCH]]

    with Lease(ledger, ledger.claim(CLAIM, by, LEASE_S), LEASE_S, RENEW_S) as lease:
        _erase_all(ledger, lease, ledger.marked(), done, on_deleted)
        since = resumable_since(retention, utc_now())
        while rows := ledger.mark_deleted(retention.runs, decide, by=by, policy=POLICY, resumable_since=since):
            _erase_all(ledger, lease, rows, done, on_deleted)
    return done


def verified_now(home: Path) -> list[tuple[Key, str]]:
    """Artifacts that running verifications of a home read, each with the verification's id."""
    return [(key, folder.path.name) for folder in rerun_folders(home) if folder.is_alive for key in folder.inputs]


def finish_deletions(ledger: Ledger, by: str) -> Collected:
    """Finish what a collection that died has left; raises ClaimHeld while one is at it."""
    done = Collected()
    with Lease(ledger, ledger.claim(CLAIM, by, LEASE_S), LEASE_S, RENEW_S) as lease:
        _erase_all(ledger, lease, ledger.marked(), done, lambda _: None)
    return done


def _erase_all(
    ledger: Ledger,
    lease: Lease,
    rows: Iterable[ArtifactRow],
    done: Collected,
    on_deleted: Callable[[ArtifactRow], None],
) -> None:
    erased = []
    for row in rows:
        lease.check()
        try:
            erase(row)
        except InfrastructureError as error:
            _log.warning("%s %s cannot be deleted: %s", row.kind, row.artifact_id, error)
            done.failed[row.artifact_id] = error.message
            continue
        erased.append(row)
        done.deleted.append(row)
        on_deleted(row)
    ledger.deleted((row.artifact_id, str(row.kind)) for row in erased)


def erase(row: ArtifactRow) -> None:
    """Delete a marked artifact's bytes, also what an interrupted deletion left of them. Files that other artifacts
    share (hard links, copies by the server) stay theirs. Somebody else may be deleting them too.

    Raises InfrastructureError for what the store refuses to delete.
    """
    place = Storage(row.uri)
    if place.is_local:
        path = place.local_root
        with storage_faults(row.uri):
            with contextlib.suppress(FileNotFoundError):  # one rename: no reader finds half an artifact
                path.rename(temporary_beside(path))
            for left in _temporaries(path):
                _remove_tree(left)
        return
    place.delete(MANIFEST)  # without it the rest is no artifact
    place.delete()


def _remove_tree(path: Path) -> None:
    while path.exists():
        with contextlib.suppress(FileNotFoundError):  # another deletion took a file of it first
            shutil.rmtree(path)


def lying(row: ArtifactRow) -> Iterator[str]:
    """Files that still lie where an artifact was, by path or URI: of itself, or of an interrupted deletion."""
    place = Storage(row.uri)
    if not place.is_local:
        yield from (f"{row.uri}/{file.path}" for file in place.list())
        return
    path = place.local_root
    yield from (str(p) for folder in (path, *_temporaries(path)) for p in sorted(folder.rglob("*")) if p.is_file())


def _temporaries(path: Path) -> list[Path]:
    return [left for left in path.parent.glob(f".{path.name}.*") if is_temporary(left.name)]
