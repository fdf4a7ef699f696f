"""What garbage collection would delete now, as its page shows it, and deleting just that."""

from __future__ import annotations

from dataclasses import dataclass

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.errors import InfrastructureError
from pipelines.gc import Judged, Leftover, collect_artifacts, find_leftovers, judge, remove_leftovers, verified_now
from pipelines.gc.judge import resumable_since
from pipelines.gc.sizes import freed_bytes
from pipelines.ledger import Ledger
from pipelines.ledger.types import utc_now
from pipelines.settings import RetentionConfig
from pipelines.web.app.tasks import Outcome, Tell
from pipelines.web.render import short, size
from pipelines.workspace import Workspace

ADDRESS = "/gc"


@dataclass(frozen=True)
class DryRun:
    """`freed`: bytes that the disk gets back, hard links counted once. `kind`: only artifacts of it, no leftovers."""

    kind: ArtifactKind | None
    doomed: tuple[Judged, ...]
    kept: tuple[Judged, ...]
    leftovers: tuple[Leftover, ...]
    freed: int

    @property
    def doomed_bytes(self) -> int:
        return sum(j.size_bytes for j in self.doomed) + sum(left.size_bytes for left in self.leftovers)

    @property
    def kept_bytes(self) -> int:
        return sum(j.size_bytes for j in self.kept)

    @property
    def digest(self) -> str:
        """Of what would go: who confirms has seen just this."""
        gone = sorted([j.artifact_id, str(j.kind)] for j in self.doomed)
        return digest_json([gone, sorted(left.uri for left in self.leftovers)])


def dry_run(
    ledger: Ledger, workspace: Workspace, retention: RetentionConfig, kind: ArtifactKind | None = None
) -> DryRun:
    """Judges every artifact and looks at the disk; changes nothing."""
    now = utc_now()
    facts = ledger.reach_facts(retention.runs, resumable_since(retention, now))
    facts.verified = verified_now(workspace.home)
    judged = [j for j in judge(facts, retention, now, workspace.store_uri) if kind is None or j.kind == kind]
    doomed = tuple(j for j in judged if not j.kept)
    leftovers = tuple(find_leftovers(ledger, workspace, retention)) if kind is None else ()
    freed = freed_bytes((j.uri, j.size_bytes) for j in doomed) + sum(left.size_bytes for left in leftovers)
    return DryRun(kind, doomed, tuple(j for j in judged if j.kept), leftovers, freed)


def delete(
    ledger: Ledger, workspace: Workspace, retention: RetentionConfig, found: DryRun, by: str, tell: Tell
) -> Outcome:
    """Raises InfrastructureError when the store refuses to delete something; all else is gone then."""
    done = collect_artifacts(
        ledger, workspace.store_uri, retention, by=by, kind=found.kind, home=workspace.home,
        on_deleted=lambda row: tell(f"deleted {row.kind} {short(row.artifact_id)}, {size(row.size_bytes)}"),
    )  # fmt: skip
    gone = remove_leftovers(ledger, workspace, retention, list(found.leftovers))
    for left in gone:
        tell(f"deleted {left.kind}, {size(left.size_bytes)}: {left.uri}")
    if done.failed:
        first = next(iter(done.failed))
        raise InfrastructureError(
            f"{len(done.failed)} artifacts could not be deleted: {done.failed[first]}", value=first,
            next_step="the same action tries again",
        )  # fmt: skip
    what = f"{len(done.deleted)} artifacts of {size(done.size_bytes)} and {len(gone)} leftovers"
    return Outcome(f"Deleted {what}.", ADDRESS)
