"""Brings artifacts into the clip index that are not there, and holds the index against the artifacts' bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m4v.core.artifacts import Artifact, ArtifactKind, read_manifest
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.shard_index import INDEX
from m4v.core.storage import Storage
from pipelines.ledger import Ledger
from pipelines.ledger.clip_index import INDEXED_KINDS
from pipelines.membership.members import CLIPS

_TABLES = {ArtifactKind.DATASET: INDEX, ArtifactKind.CLIPS: CLIPS}


@dataclass(frozen=True)
class Indexed:
    """What became of an artifact: `rows` are new ones, `problem` is why it could not be indexed."""

    artifact_id: str
    kind: str
    rows: int
    seconds: float
    problem: str | None = None


def backfill(ledger: Ledger) -> Iterator[Indexed]:
    """Index what is recorded and not indexed, oldest first; damaged and deleted artifacts are passed over with the
    reason. May be stopped and called again at any time."""
    for missing in ledger.unindexed():
        if missing.deleted:
            gone = "its bytes were deleted before it was indexed"
            yield Indexed(missing.artifact_id, missing.kind, 0, 0.0, gone)
        else:
            yield _index(ledger, missing.artifact_id, missing.kind, missing.uri)


def index_again(ledger: Ledger, artifact: str) -> Indexed:
    """Make the index of an artifact (id or prefix) anew from its bytes, which are looked at first.

    Raises InputError for an artifact that is unknown or holds no clips, DataIntegrityError when its table is damaged or
    not there: what could not be made again stays.
    """
    row = ledger.artifact(artifact)
    if row.kind not in INDEXED_KINDS:
        raise InputError(f"a {row.kind} lists no clips", value=artifact, next_step="m4v artifacts list")
    place = Storage(row.uri)
    name, manifest = _TABLES.get(row.kind, ""), read_manifest(place)
    if name in {f.path for f in manifest.files} and place.digest(name) != manifest.entry(name).sha256:
        raise DataIntegrityError("table differs from the manifest", value=name, where=row.uri)
    ledger.forget_members(row.artifact_id, row.kind)
    return _index(ledger, row.artifact_id, row.kind, row.uri)


def _index(ledger: Ledger, artifact_id: str, kind: str, uri: str) -> Indexed:
    began, rows, problem = time.monotonic(), 0, None
    try:
        rows = ledger.index_members(artifact_id, kind, Storage(uri))
    except (DataIntegrityError, InputError) as error:
        problem = error.message
    return Indexed(artifact_id, kind, rows, round(time.monotonic() - began, 3), problem)


def check_index(ledger: Ledger) -> list[str]:
    """What is wrong with what is indexed: tables that disagree with each other, or with the artifacts whose bytes are
    here."""
    problems = ledger.check_clip_index()
    rows = {(row.artifact_id, row.kind): row for row in ledger.artifacts(limit=None)}
    for counted in ledger.indexed_counts():
        kind = ArtifactKind(counted.kind)
        row = rows.get((counted.artifact_id, kind))
        if row is None or row.deletion is not None or kind not in _TABLES:
            continue
        try:
            own = _table_rows(Storage(row.uri), row.artifact_id, kind)
        except (DataIntegrityError, InputError) as error:
            problems.append(f"{kind} {row.artifact_id[:12]} cannot be compared: {error.what}")
            continue
        if own != counted.members:
            problems.append(f"{kind} {row.artifact_id[:12]}: {own} rows in its table, {counted.members} indexed")
    return problems


def _table_rows(storage: Storage, artifact_id: str, kind: ArtifactKind) -> int:
    """Rows of an artifact's own table, from the end of the file."""
    with tempfile.TemporaryDirectory(prefix="rows-") as cache:
        artifact = Artifact(storage.uri, artifact_id, kind, Path(cache))
        name = _TABLES[kind]
        if name not in artifact.names():
            return 0
        try:
            return int(pq.read_metadata(artifact.path(name)).num_rows)
        except (pa.ArrowInvalid, OSError):
            raise DataIntegrityError(f"{name} cannot be read", where=storage.uri) from None
