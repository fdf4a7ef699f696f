"""A curated clip by id, clips by words of their captions, and where a clip's media lie. No HTML here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from dataprep.curation.table import CLIPS, PREVIEWS, SCORES
from dataprep.sources.entries import ListedFile
from dataprep.sources.listing import FILE_SCHEMA, LISTING, SOURCE, SourceReader
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.assets import resolve
from m4v.core.errors import InputError
from m4v.core.shard_index import INDEX
from m4v.core.storage import Storage
from pipelines import stages
from pipelines.ledger import ArtifactRow, Ledger, RunRow

Row = dict[str, Any]
NEWEST = 8  # clip tables looked through unless asked for more: newer ones repeat what older ones hold
_MEMORY = "512MB"
_FOUND_COLUMNS = (
    "clip_id", "source", "source_id", "media", "start_us", "end_us", "captions", "kept", "drop_rule",
)  # fmt: skip


@dataclass(frozen=True)
class FoundClip:
    """A row of a clip table that a search met; `fate` is `kept` or the rule that dropped it."""

    clip_id: str
    source: str
    source_id: str
    media: str
    start_us: int
    end_us: int
    caption: str
    fate: str
    artifact_id: str


@dataclass(frozen=True)
class CuratedClip:
    """What the newest clip table that has the clip says about it. `preview` names a picture in that artifact."""

    artifact: Artifact
    row: Row
    preview: str | None

    @property
    def captions(self) -> tuple[str, ...]:
        return tuple(self.row.get("captions") or ())

    @property
    def scores(self) -> tuple[tuple[str, float], ...]:
        found = [(name, self.row.get(f"score_{name}")) for name in SCORES]
        return tuple((name, float(value)) for name, value in found if value is not None)

    @property
    def fate(self) -> str:
        return str(self.row["drop_rule"] or "kept")


def clip_tables(ledger: Ledger, cache: Path, newest: int = NEWEST) -> list[Artifact]:
    """Published clip tables in use whose bytes are there, newest first. Withdrawn ones are out of use: what they hold
    is not shown any more."""
    return _in_use(ledger, ledger.artifacts(kind=ArtifactKind.CLIPS, limit=newest), cache)


def tables_with(ledger: Ledger, cache: Path, clip_id: str) -> list[Artifact]:
    """Those of `clip_tables` that list a clip, kept or dropped, however old they are."""
    kinds = ledger.kinds_of(ledger.artifacts_with([clip_id], dropped=True))
    rows = [ledger.artifact(i, ArtifactKind.CLIPS) for i, kind in kinds.items() if kind == ArtifactKind.CLIPS]
    return _in_use(ledger, sorted(rows, key=lambda row: row.recorded_at, reverse=True), cache)


def _in_use(ledger: Ledger, rows: Sequence[ArtifactRow], cache: Path) -> list[Artifact]:
    artifacts = [_artifact(row, cache) for row in rows if ledger.withdrawal(row.artifact_id, row.kind) is None]
    return [a for a in artifacts if a.storage.exists(MANIFEST)]


def with_words(tables: Sequence[Artifact], words: str, limit: int = 50) -> list[FoundClip]:
    """Clips whose captions hold every one of the words, in any letter case; each clip once, of the newest table."""
    wanted = [word.lower() for word in words.split()]
    found: dict[str, FoundClip] = {}
    for artifact in tables:
        if not wanted or len(found) >= limit:
            break
        condition = " AND ".join(["contains(lower(array_to_string(captions, ' ')), ?)"] * len(wanted))
        for row in _query(artifact, CLIPS, _FOUND_COLUMNS, condition, wanted, limit):
            found.setdefault(row["clip_id"], _found(row, artifact))
    return list(found.values())[:limit]


def curated_clip(tables: Sequence[Artifact], clip_id: str) -> CuratedClip | None:
    """The clip in the first of the tables that has it."""
    for artifact in tables:
        names = pq.ParquetFile(artifact.path(CLIPS)).schema_arrow.names
        for row in _query(artifact, CLIPS, names, "clip_id = ?", [clip_id], 1):
            preview = f"{PREVIEWS}/{clip_id}.jpg"
            return CuratedClip(artifact, row, preview if preview in artifact.names(preview) else None)
    return None


def media_file(ledger: Ledger, clip: CuratedClip, cache: Path) -> Path:
    """A local path of the file that the clip was cut from: inside its source's artifact, or in place at the location
    that the recipe gave.

    Raises InputError where it is no longer there.
    """
    above = ledger.lineage_up(clip.artifact.id)
    curated = [ledger.run(run.run_id) for run in above.runs.values() if run.stage == stages.CURATE.name]
    for port in (port for run in curated for port in run.inputs if port.kind == ArtifactKind.SOURCE):
        source = _artifact(ledger.artifact(port.artifact_id, ArtifactKind.SOURCE), cache)
        if not source.storage.exists(MANIFEST) or SOURCE not in source.names(SOURCE):
            continue
        reader = SourceReader(source)
        if reader.name == clip.row["source"]:
            return _path(reader, clip, _location(ledger, curated, reader.name), cache)
    raise InputError("the clip's source is no longer in the store", value=clip.row["source"])


def _path(reader: SourceReader, clip: CuratedClip, location: Storage | None, cache: Path) -> Path:
    path = str(clip.row["path"])
    if reader.facts.media == "inside":
        if path not in reader.artifact.names(path):
            raise InputError("the clip's file is no longer in the store", value=path)
        return reader.artifact.path(path)
    listed = _listed(reader.artifact, path)
    if listed is None:
        raise InputError("the source no longer lists the clip's file", value=path)
    return reader.media_path(listed, location, cache / "media")


def _listed(source: Artifact, path: str) -> ListedFile | None:
    for row in _query(source, LISTING, FILE_SCHEMA.names, "path = ?", [path], 1):
        return ListedFile(**{**row, "extra": json.loads(row["extra"])})
    return None


def _location(ledger: Ledger, curated: Sequence[RunRow], source: str) -> Storage | None:
    """Where a pipeline run that curated the clip found the source; None for one made by the recipe."""
    for run in curated:
        attempt = ledger.attempt(run.attempt_id)
        if attempt.pipeline_run_id is None:
            continue
        for entry in ledger.pipeline_run(attempt.pipeline_run_id).resolved.get("sources", ()):
            if entry.get("name") == source and entry.get("location"):
                return Storage(resolve(str(entry["location"])))
    return None


def _artifact(row: ArtifactRow, cache: Path) -> Artifact:
    return Artifact(row.uri, row.artifact_id, row.kind, cache)


def _query(
    artifact: Artifact, table: str, columns: Sequence[str], condition: str, values: Sequence[str], limit: int
) -> Iterator[Row]:
    chosen = ", ".join(f'"{name}"' for name in columns)
    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": _MEMORY}) as database:
        query = f"SELECT {chosen} FROM read_parquet(?) WHERE {condition} LIMIT {int(limit)}"
        for row in database.execute(query, [str(artifact.path(table)), *values]).fetchall():
            yield dict(zip(columns, row, strict=True))


def _found(row: Row, artifact: Artifact) -> FoundClip:
    captions = row["captions"] or [""]
    return FoundClip(
        row["clip_id"], row["source"], row["source_id"], row["media"], row["start_us"], row["end_us"], captions[0],
        row["drop_rule"] or "kept", artifact.id,
    )  # fmt: skip


def dataset_clips(dataset: Artifact, after: str = "", limit: int = 50) -> list[str]:
    """Clip ids of a dataset version in order, those behind `after`; each once."""
    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": _MEMORY}) as database:
        query = "SELECT DISTINCT clip_id FROM read_parquet(?) WHERE clip_id > ? ORDER BY clip_id LIMIT ?"
        return [row[0] for row in database.execute(query, [str(dataset.path(INDEX)), after, limit]).fetchall()]
