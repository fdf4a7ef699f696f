"""What a selector touches now: its clips with all that recognises them, and the artifacts that must go out of use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprep.blocked import BlockedClip
from dataprep.curation.candidates import HASHES
from dataprep.curation.table import CLIPS
from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import InputError, M4VError
from pipelines.ledger import Ledger
from pipelines.membership import ClipFacts, ClipSelector
from pipelines.workspace import Workspace

_HOLDERS = (ArtifactKind.CLIPS, ArtifactKind.DATASET)
Held = tuple[str, str, str]  # artifact id, kind, why


@dataclass(frozen=True)
class Affected:
    """`holders`: ids of the matched clips by the artifact (id, kind) whose bytes hold them; `reports` are pages that
    show one of these artifacts."""

    clips: tuple[BlockedClip, ...]
    holders: Mapping[tuple[str, str], tuple[str, ...]]
    reports: tuple[str, ...]

    def withdrawals(self) -> list[Held]:
        """Every artifact that goes out of use, with the reason in words."""
        held = [(i, kind, f"holds {len(clips)} of the clips") for (i, kind), clips in self.holders.items()]
        return [*held, *((i, str(ArtifactKind.REPORT), "shows an artifact that holds the clips") for i in self.reports)]

    def blocked(self) -> list[dict[str, Any]]:
        return [clip.canonical() for clip in self.clips]


def affected_by(ledger: Ledger, workspace: Workspace, selector: ClipSelector, *, measure: bool = True) -> Affected:
    """Everything that the ledger knows of the selected clips, artifacts that are withdrawn already included.

    Clip tables count for clips that they dropped as well: they hold their previews. Raises InputError for a term that
    matches nothing, and while artifacts are not in the clip index. `measure` also reads the digests of the clips'
    pictures from their tables, which a block list wants.
    """
    if missing := [m for m in ledger.unindexed() if not m.deleted]:
        raise InputError(
            f"{len(missing)} artifacts are not in the clip index: their clips would be missed",
            value=f"{missing[0].kind} {missing[0].artifact_id[:12]}",
            next_step="m4v ledger index",
        )
    facts = ledger.find_clips(selector)
    found = ledger.artifacts_with([clip.clip_id for clip in facts], dropped=True)
    holders: dict[tuple[str, str], tuple[str, ...]] = {}
    for kind in _HOLDERS:
        for artifact_id, clips in sorted(found.items()):
            if _known(ledger, artifact_id, kind):
                holders[artifact_id, str(kind)] = tuple(sorted(clips))
    reports = {
        port.artifact_id
        for artifact_id, _ in holders
        for run in ledger.consumers(artifact_id)
        for port in run.outputs
        if port.kind is ArtifactKind.REPORT
    }
    tables = [i for i, kind in holders if kind == ArtifactKind.CLIPS] if measure else []
    measured = _measured(ledger, workspace, tables, facts)
    blocked = [entry for clip in facts for entry in _blocked(clip, measured.get(clip.clip_id, {}))]
    return Affected(tuple(blocked), holders, tuple(sorted(reports)))


def blocks_of(selector: ClipSelector) -> dict[str, Any]:
    """What a selector blocks beside the clips that are known: whole collections and files, bytes and pictures."""
    files = [name.split("/", 1) for name in selector.sources if "/" in name]
    return {
        "sources": [name for name in selector.sources if "/" not in name],
        "files": files,
        "digests": list(selector.digests),
        "phashes": list(selector.phashes),
        "phash_bits": selector.phash_bits if selector.phashes else 0,
    }


def _known(ledger: Ledger, artifact_id: str, kind: ArtifactKind) -> bool:
    try:
        return ledger.artifact(artifact_id, kind).kind is kind
    except M4VError:
        return False


def _measured(
    ledger: Ledger, workspace: Workspace, tables: Iterable[str], facts: Iterable[ClipFacts]
) -> dict[str, dict[str, Any]]:
    """What clip tables say beyond the index: digest of the pictures, and whether they are drawn."""
    wanted = pa.array([clip.clip_id for clip in facts], pa.string())
    found: dict[str, dict[str, Any]] = {}
    for artifact_id in tables:
        row = ledger.artifact(artifact_id, ArtifactKind.CLIPS)
        try:
            table = Artifact(row.uri, artifact_id, ArtifactKind.CLIPS, workspace.home / "cache")
            rows = _rows(table, CLIPS, ("clip_id", "content_digest"), wanted)
            drawn = {r["clip_id"]: r["drawn"] for r in _rows(table, HASHES, ("clip_id", "drawn"), wanted)}
        except (M4VError, OSError):
            continue  # its bytes are gone; the index still knows the clips
        for one in rows:
            content = one["content_digest"] or ""
            found[one["clip_id"]] = {"content": content, "drawn": bool(drawn.get(one["clip_id"]))}
    return found


def _rows(artifact: Artifact, name: str, columns: tuple[str, ...], wanted: pa.Array) -> list[dict[str, Any]]:
    if name not in artifact.names():
        return []
    rows: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(artifact.path(name)).iter_batches(columns=list(columns)):
        rows += batch.filter(pc.is_in(batch["clip_id"], value_set=wanted)).to_pylist()
    return rows


def _blocked(clip: ClipFacts, measured: Mapping[str, Any]) -> list[BlockedClip]:
    """One entry for each digest that the clip's file had: it may have been replaced under its name."""
    return [
        BlockedClip(
            clip_id=clip.clip_id, source=clip.source, source_id=clip.source_id, source_digest=digest,
            start_us=clip.start_us, end_us=clip.end_us, media="image" if clip.is_image else "video",
            phash=clip.phash or "", content=measured.get("content", ""), drawn=measured.get("drawn", False),
        )
        for digest in clip.source_digests or ("",)
    ]  # fmt: skip


def artifact_of(ledger: Ledger, workspace: Workspace, artifact_id: str, kind: str) -> Artifact:
    """A recorded artifact for reading, wherever it lies."""
    row = ledger.artifact(artifact_id, kind)
    return Artifact(row.uri, artifact_id, ArtifactKind(kind), workspace.home / "cache")


__all__ = ["Affected", "Held", "affected_by", "artifact_of", "blocks_of"]
