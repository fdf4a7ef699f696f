"""The listing of a source collection: files, captions and what was rejected, as rows and as an artifact.

Layout: `listing.parquet`, `captions.parquet`, `rejected.parquet`, `source.json`; `media/` where the
collection was generated; `wanted.parquet` where missing files can be fetched; `repairs.parquet` where captions had
to be repaired. Rows stream to disk, so a listing
of a million files needs little memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.sources.archives import copy_member, split_path
from dataprep.sources.entries import (
    Caption,
    Count,
    Entry,
    ListedFile,
    Media,
    Rejected,
    SourceListing,
    Wanted,
    canonical_line,
    entries_digest,
    entry_row,
)
from dataprep.sources.text import printable
from m4v.core.artifacts import Artifact
from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage, write_atomic

LISTING, CAPTIONS, REJECTED, SOURCE = "listing.parquet", "captions.parquet", "rejected.parquet", "source.json"
WANTED, REPAIRS = "wanted.parquet", "repairs.parquet"
ROW_GROUP = 8192

FILE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("media", pa.string()),
        ("source_id", pa.string()),
        ("licence", pa.string()),
        ("first_frame", pa.int64()),  # the part of the file that may be used, inclusive; null = all of it
        ("last_frame", pa.int64()),
        ("width", pa.int32()),  # from here on: claims of the collection, never measured
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("duration_s", pa.float64()),
        ("extra", pa.string()),
    ]
)
CAPTION_SCHEMA = pa.schema(
    [("path", pa.string()), ("first_frame", pa.int64()), ("last_frame", pa.int64()), ("caption", pa.string()),
     ("origin", pa.string())]
)  # fmt: skip
REJECTED_SCHEMA = pa.schema(
    [("path", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())]
)
REPAIR_SCHEMA = pa.schema([*CAPTION_SCHEMA, ("flags", pa.list_(pa.string()))])
WANTED_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("row", pa.int64()),
        ("url", pa.string()),
        ("source_id", pa.string()),
        ("media", pa.string()),
        ("extra", pa.string()),
    ]
)


class SourceFacts(FrozenModel):
    """`source.json`. `media`: whether files lie inside the artifact or at the collection's location;
    `identity`: what the sha256 column was made of."""

    schema_version: int = 1
    name: str
    kind: str
    licence: str
    terms: str
    media: Literal["external", "inside"]
    identity: Literal["full", "sampled"]
    counts: dict[str, int]


class _Table:
    """A Parquet file written in row groups of a fixed size: same rows, same bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, object]] = []

    def add(self, row: dict[str, object]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            try:
                table = pa.Table.from_pylist(self._rows, schema=self._schema)
            except UnicodeEncodeError:  # escapes of JSON can spell half a character
                rows = [{k: printable(v) if isinstance(v, str) else v for k, v in r.items()} for r in self._rows]
                table = pa.Table.from_pylist(rows, schema=self._schema)
            self._writer.write_table(table)
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


class ListingWriter:
    """Streams entries into the tables of a source artifact; use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._files = _Table(directory / LISTING, FILE_SCHEMA)
        self._captions = _Table(directory / CAPTIONS, CAPTION_SCHEMA)
        self._rejected = _Table(directory / REJECTED, REJECTED_SCHEMA)
        self._directory = directory
        self._wanted: _Table | None = None  # most collections have no such tables
        self._repairs: _Table | None = None

    def __enter__(self) -> ListingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for table in (self._files, self._captions, self._rejected, self._wanted, self._repairs):
            if table is not None:
                table.close()

    def add(self, entry: Entry) -> None:
        if isinstance(entry, Count):
            self.counts[entry.name] += entry.number
        elif isinstance(entry, Rejected):
            self._rejected.add(entry_row(entry))
            self.counts["rejected"] += 1
            self.counts[f"rejected_{entry.reason}"] += 1
            if entry.wanted is not None:
                self._want(entry, entry.wanted)
        else:
            self._files.add(entry_row(entry))
            for caption in entry.captions:
                row: dict[str, object] = {
                    "path": entry.path, "first_frame": caption.first_frame, "last_frame": caption.last_frame,
                    "caption": caption.text, "origin": caption.origin,
                }  # fmt: skip
                self._captions.add(row)
                if caption.flags:
                    self._repairs = self._repairs or _Table(self._directory / REPAIRS, REPAIR_SCHEMA)
                    self._repairs.add({**row, "flags": list(caption.flags)})
            self.counts["files"] += 1
            self.counts[f"{entry.media}s"] += 1
            self.counts["captions"] += len(entry.captions)
            self.counts["size_bytes"] += entry.size_bytes

    def _want(self, entry: Rejected, wanted: Wanted) -> None:
        if self._wanted is None:
            self._wanted = _Table(self._directory / WANTED, WANTED_SCHEMA)
        self._wanted.add(
            {"path": entry.path, "row": entry.row, "url": wanted.url, "source_id": wanted.source_id,
             "media": wanted.media, "extra": canonical_line(wanted.claims)}
        )  # fmt: skip
        self.counts["wanted"] += 1


def write_facts(directory: Path, facts: SourceFacts) -> None:
    write_atomic(directory / SOURCE, json.dumps(facts.canonical(), indent=1, sort_keys=True).encode())


class SourceReader:
    """A published source artifact for reading; the tables are read batch by batch."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.facts = SourceFacts.model_validate_json(artifact.path(SOURCE).read_bytes())

    @property
    def name(self) -> str:
        return self.facts.name

    def files(self) -> Iterator[ListedFile]:
        """Listed files in order, with their captions."""
        captions = _Grouped(self._rows(CAPTIONS, CAPTION_SCHEMA))
        repairs = _Grouped(self._rows(REPAIRS, REPAIR_SCHEMA) if REPAIRS in self.artifact.names() else iter(()))
        rows = self._rows(LISTING, FILE_SCHEMA)
        row = next(rows, None)
        while row is not None:
            following = next(rows, None)
            # Spans of one file that follow each other own the captions of just their frames.
            shared = following is not None and following["path"] == row["path"]
            span = (row["first_frame"], row["last_frame"]) if shared else None
            own = [_caption(c) for c in captions.take(str(row["path"]), span)]
            repaired = [_caption(c) for c in repairs.take(str(row["path"]), span)]
            own = [next((r for r in repaired if r.same(c)), c) for c in own]
            row["extra"] = json.loads(str(row["extra"]))
            yield ListedFile(captions=tuple(own), **row)  # type: ignore[arg-type]
            row = following

    def rejected(self) -> Iterator[Rejected]:
        for row in self._rows(REJECTED, REJECTED_SCHEMA):
            yield Rejected(**row)  # type: ignore[arg-type]

    def wanted(self) -> Iterator[Rejected]:
        """Rejections with where to fetch their file, for a downloader."""
        if WANTED not in self.artifact.names():
            return
        for row in self._rows(WANTED, WANTED_SCHEMA):
            claims = json.loads(str(row["extra"]))
            wanted = Wanted(str(row["url"]), str(row["source_id"]), row["media"], claims)  # type: ignore[arg-type]
            yield Rejected(str(row["path"]), row["row"], "missing_file", "", wanted)  # type: ignore[arg-type]

    def media_path(self, file: ListedFile, location: Storage | None, cache: Path) -> Path:
        """A local path of a listed file: inside the artifact, in place at a local `location`, or a copy below
        `cache` of a remote one or of an archive's member. Raises InputError when file or location is not there."""
        if self.facts.media == "inside":
            return self.artifact.path(file.path)
        if location is None:
            raise InputError("source has no location", value=self.name, next_step="give it a `location` in the recipe")
        if split_path(file.path) is not None:
            target = cache / self.name / file.sha256
            if not target.is_file():
                copy_member(location, file.path, target)
            return target
        if not location.is_local:
            known = file.sha256 if self.facts.identity == "full" else None
            return location.fetch(file.path, cache / self.name / file.path, known)
        path = location.local_root / file.path
        if not path.is_file():
            raise InputError(
                "listed file is gone", value=file.path, where=location.uri, next_step="m4v run lists it again"
            )
        return path

    def _rows(self, name: str, schema: pa.Schema) -> Iterator[dict[str, object]]:
        table = pq.ParquetFile(self.artifact.path(name), pre_buffer=False)  # keeps no chunk that was read
        if table.schema_arrow.names != schema.names:
            raise DataIntegrityError("source table has other columns", value=table.schema_arrow.names, where=name)
        for batch in table.iter_batches(batch_size=ROW_GROUP):
            yield from batch.to_pylist()


def _caption(row: dict[str, object]) -> Caption:
    flags = cast("list[str]", row.get("flags") or [])
    return Caption(row["first_frame"], row["last_frame"], row["caption"], row["origin"], tuple(flags))  # type: ignore[arg-type]


class _Grouped:
    """Hands out runs of caption rows by path; both tables stand in the same order."""

    def __init__(self, rows: Iterator[dict[str, object]]) -> None:
        self._rows = rows
        self._next: dict[str, object] | None = next(rows, None)

    def take(self, path: str, span: tuple[object, object] | None) -> list[dict[str, object]]:
        """The next rows of this file; with a span only as long as they are of just these frames."""
        taken = []
        while self._next is not None and self._next["path"] == path:
            if span is not None and (self._next["first_frame"], self._next["last_frame"]) != span:
                break
            taken.append(self._next)
            self._next = next(self._rows, None)
        return taken


__all__ = [
    "CAPTIONS",
    "LISTING",
    "REJECTED",
    "SOURCE",
    "WANTED",
    "Caption",
    "Count",
    "Entry",
    "ListedFile",
    "ListingWriter",
    "Media",
    "Rejected",
    "SourceFacts",
    "SourceListing",
    "SourceReader",
    "Wanted",
    "entries_digest",
    "entry_row",
    "write_facts",
]
