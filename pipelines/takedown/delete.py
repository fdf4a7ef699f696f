"""Deletes bytes of withdrawn artifacts and of items made from the clips; rows stay, and so do bytes of versions that
are in use: shards that they share are other links, or other objects, of the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprep.curation.table import CLIPS
from dataprep.encode.clips import KeptClip, kept_clips
from dataprep.encode_config import BucketConfig
from dataprep.quarantine import ItemError
from m4v.core.artifacts import MANIFEST, Artifact
from m4v.core.config import parse
from m4v.core.storage import Storage
from pipelines.gc.artifacts import erase
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.ledger.retention import Deletion
from pipelines.takedown.versions import delete_versions
from pipelines.workspace import Workspace

POLICY = "takedown"
_BY_LATENT, _BY_CAPTION = ("latents", "frame-times", "reconstructions"), ("texts",)
_BY_CLIP, _BY_FILE = ("curate-clip", "recaption"), ("curate-image", "curate-probe", "curate-segment")
_SPAN = ("source_digest", "first_frame", "frames", "clip_id")


@dataclass(frozen=True)
class Deleted:
    """`bytes_freed` leaves out what another version still links to."""

    files: int
    size_bytes: int
    bytes_freed: int

    def facts(self) -> dict[str, Any]:
        return {"files": self.files, "size_bytes": self.size_bytes, "bytes_freed": self.bytes_freed}


def delete_artifact(ledger: Ledger, row: ArtifactRow, by: str, reason: str) -> None:
    """Delete an artifact's bytes: decided and recorded first, so that a kill in between leaves no half artifact that
    somebody would use."""
    ledger.mark([Deletion(row.artifact_id, str(row.kind), reason)], by=by, policy=POLICY)
    erase(row)
    delete_versions(row.uri)
    ledger.deleted([(row.artifact_id, str(row.kind))])


def count_bytes(place: Storage) -> Deleted:
    """What deleting an artifact's place deletes."""
    files = list(place.list())
    freed = sum(f.size_bytes for f in files if not place.is_local or _links(place.local_root / f.path) == 1)
    return Deleted(len(files), sum(f.size_bytes for f in files), freed)


def _links(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except OSError:
        return 1  # deleted by an earlier start


def delete_items(ledger: Ledger, workspace: Workspace, table: Artifact, clips: frozenset[str]) -> Deleted:
    """Delete what is kept of clips of a table for re-use: encodings, captions by a model, captions' features, key
    frames; of a file of which
    the table has no other clip also its measurements. Nothing to do once the table's bytes are gone."""
    size = number = 0
    items = Storage(workspace.items_uri)
    for step, key in sorted(set(_keys(ledger, table, clips))) if table.storage.exists(MANIFEST) else ():
        for folder in items.directories(step):
            place = items.child(f"{step}/{folder}/{key[:2]}")
            found = [f for f in place.list() if _is_item(f.path, key)]
            size, number = size + sum(f.size_bytes for f in found), number + len(found)
            delete_versions(place.uri, partial(_is_item, key=key))
            for item in found:
                place.delete(item.path)
    return Deleted(number, size, size)


def _is_item(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}-")


def _keys(ledger: Ledger, table: Artifact, clips: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(step, key, or the beginning of one up to a dash)."""
    kept = [clip for clip in kept_clips(table.path(CLIPS)) if clip.clip_id in clips]
    for config in _bucket_configs(ledger, table.id):
        for clip in kept:
            if (key := _latent_key(clip, config)) is not None:
                yield from ((step, key) for step in _BY_LATENT)
    yield from ((step, clip.text_key()) for clip in kept for step in _BY_CAPTION)
    rows, staying = _spans(table, clips)
    for row in rows:
        yield from ((step, f"{row['source_digest']}-{row['first_frame']}-{row['frames']}") for step in _BY_CLIP)
        if row["source_digest"] not in staying:
            yield from ((step, row["source_digest"]) for step in _BY_FILE)


def _spans(table: Artifact, clips: frozenset[str]) -> tuple[list[dict[str, Any]], set[str]]:
    """Where the clips lie in their files, and digests of files of which the table has other clips as well."""
    wanted, rows, staying = pa.array(sorted(clips), pa.string()), [], set[str]()
    for batch in pq.ParquetFile(table.path(CLIPS)).iter_batches(columns=list(_SPAN)):
        taken = pc.is_in(batch["clip_id"], value_set=wanted)
        rows += batch.filter(taken).to_pylist()
        staying.update(batch.filter(pc.invert(taken))["source_digest"].unique().to_pylist())
    return rows, staying


def _bucket_configs(ledger: Ledger, clips_id: str) -> list[BucketConfig]:
    """How the table's clips were cut to size by the runs that encoded them."""
    runs = [run for run in ledger.consumers(clips_id) if run.stage == "encode"]
    return list(dict.fromkeys(parse(BucketConfig, run.config.get("buckets", {}), f"run {run.run_id}") for run in runs))


def _latent_key(clip: KeptClip, config: BucketConfig) -> str | None:
    try:
        return clip.latent_key(clip.buckets(config), clip.sampling_fps(config))
    except ItemError:
        return None  # it filled no bucket and was not encoded


def delete_copies(workspace: Workspace, artifact_id: str) -> None:
    """Delete files of an artifact of a remote store that this machine keeps to read them again."""
    shared = os.environ.get("M4V_CACHE")
    for cache in (workspace.home / "cache", *([Path(shared)] if shared else [])):
        Storage(str(cache / artifact_id)).delete()


__all__ = ["Deleted", "count_bytes", "delete_artifact", "delete_copies", "delete_items"]
