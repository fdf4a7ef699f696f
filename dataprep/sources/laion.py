"""Adapter `laion`: LAION-aesthetics tables in their variants, or what img2dataset made of them.

Published tables: URL, TEXT, WIDTH, HEIGHT, similarity, hash, punsafe, pwatermark, and aesthetic or AESTHETIC_SCORE,
of several number types; laion-art adds LANGUAGE. img2dataset writes `NNNNN.parquet` (key, status, sha256, …) beside
`NNNNN/KEY.jpg` or `NNNNN.tar`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from dataprep.sources.adapter import ScanContext
from dataprep.sources.archives import member_path, open_archive, shard_members
from dataprep.sources.captions import positive_number
from dataprep.sources.config_tables import LaionConfig
from dataprep.sources.digests import DigestCache, stream_digest
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.listing import Count, Entry, Rejected
from dataprep.sources.rows import MediaFiles, Place, Row, find_tables, limited, row_entries, tree_digest
from dataprep.sources.tar_index import TarError
from dataprep.sources.text import path_problem, printable
from dataprep.sources.tree import IMAGE_SUFFIXES
from m4v.core.errors import InputError
from m4v.core.storage import Storage

# Our name: names of the column, lower case.
COLUMNS = {
    "url": ("url",),
    "text": ("text", "caption"),
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "similarity": ("similarity",),
    "aesthetic": ("aesthetic", "aesthetic_score"),
    "punsafe": ("punsafe",),
    "pwatermark": ("pwatermark",),
    "language": ("language",),
    "hash": ("hash",),
    "key": ("key",),
    "status": ("status",),
    "error": ("error_message",),
}
SCORES = ("similarity", "aesthetic", "punsafe", "pwatermark")
_BATCH_ROWS = 8192


class LaionAdapter:
    inside = False

    def entries(self, config: LaionConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        tables = find_tables(location, config.tables, "Parquet table")
        yield from limited(_all(tables, config, location, context), config.limit, context)

    def probe(self, config: LaionConfig, location: Storage | None, digests: DigestCache) -> str:
        return tree_digest(location, config.kind)


def image_path(url: str, folder: str = "images") -> str:
    """Where the image of a URL lies below a collection: by the URL's digest, so that any URL makes a safe name."""
    name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    try:
        suffix = posixpath.splitext(urlsplit(url).path)[1].lower()
    except ValueError:
        suffix = ""
    return posixpath.join(folder, name[:2], name + (suffix if suffix in IMAGE_SUFFIXES else ".jpg"))


def _all(tables: list[str], config: LaionConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
    files = MediaFiles(location, context.digests, config.identity)
    seen, rows = KeySet(), 0
    for table in tables:
        downloaded: _Downloaded | None = None
        for number, fields in enumerate(_fields(location, table), start=1):
            rows += 1
            place = Place(table, number, None)
            if "key" in fields and downloaded is None:
                downloaded = _Downloaded(location, table, files, context.digests)
                yield from downloaded.rejected
            yield from _entries(fields, place, config, downloaded or files, seen)
    yield Count("rows", rows)


def _fields(location: Storage, table: str) -> Iterator[dict[str, Any]]:
    """Rows by our names of the columns; only columns that we know are read."""
    try:
        with location.open(table) as stream:
            parquet = pq.ParquetFile(stream)
            present = {name.lower(): name for name in parquet.schema_arrow.names}
            chosen = {ours: next((present[n] for n in names if n in present), None) for ours, names in COLUMNS.items()}
            columns = {ours: name for ours, name in chosen.items() if name is not None}
            if not {"url", "text"} <= set(columns):
                raise InputError(
                    "table has no columns URL and TEXT", value=parquet.schema_arrow.names[:20], where=table,
                    next_step="set `tables` of this source to LAION's or img2dataset's Parquet files",
                )  # fmt: skip
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns.values())):
                values = {
                    ours: batch.column(batch.schema.get_field_index(n)).to_pylist() for ours, n in columns.items()
                }
                names = list(values)
                for row in zip(*values.values(), strict=True):
                    yield dict(zip(names, row, strict=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        detail = str(error).partition("\n")[0][:200]
        raise InputError(f"Parquet table cannot be read: {detail}", value=table, where=location.uri) from None


class _Downloaded(MediaFiles):
    """Images of one shard of img2dataset, in its folder or its tar, by key."""

    def __init__(self, location: Storage, table: str, files: MediaFiles, digests: DigestCache) -> None:
        super().__init__(location, digests, files.identity)
        self._files, self._stem = files, posixpath.splitext(table)[0]
        self._members: dict[str, tuple[int, int]] = {}
        self.rejected: list[Rejected] = []
        self._tar = f"{self._stem}.tar"
        if location.exists(self._tar):
            try:
                for member in shard_members(location, self._tar):
                    problem = member.problem or path_problem(member.name)
                    path = member_path(self._tar, member.name)
                    if problem is not None:
                        self.rejected.append(Rejected(printable(path), None, "unsafe_member", problem))
                    elif posixpath.splitext(member.name)[1].lower() in IMAGE_SUFFIXES:
                        self._members.setdefault(path, (member.offset, member.size))
            except TarError as error:
                self.rejected.append(Rejected(self._tar, None, "bad_archive", str(error)))

    def path(self, key: str) -> str:
        """The image of a key; where it is not there, its path in the folder."""
        for suffix in (".jpg", ".jpeg", ".png", ".webp"):
            if (member := member_path(self._tar, key + suffix)) in self._members:
                return member
            if self._files.size(f"{self._stem}/{key}{suffix}") is not None:
                return f"{self._stem}/{key}{suffix}"
        return f"{self._stem}/{key}.jpg"

    def size(self, path: str) -> int | None:
        return self._members[path][1] if path in self._members else self._files.size(path)

    def digest(self, path: str, size: int) -> str:
        if path not in self._members or not self.digests.reads:
            return self._files.digest(path, size)
        with open_archive(self.location, self._tar) as stream:
            return stream_digest(stream, size, self.identity, self._members[path][0])


def _entries(
    fields: Mapping[str, Any], place: Place, config: LaionConfig, files: MediaFiles, seen: KeySet
) -> Iterator[Entry]:
    url, key = fields["url"], fields.get("key")
    if not isinstance(url, str) or not url:
        yield Rejected(place.table, place.row, "bad_row", f"{place}: no URL")
        return
    scores = {name: float(v) for name in SCORES if (v := fields.get(name)) is not None and abs(v) < 1e12}
    claims = {name: n for name in ("width", "height") if (n := positive_number(fields.get(name))) is not None}
    if not _wanted(scores, claims, config):
        yield Count("filtered_by_scores")
        return
    if not seen.add(key_of(f"{place.table}/{key}" if key is not None else url)):
        yield Rejected(image_path(url, config.images), place.row, "duplicate_id", str(place))
        return
    if isinstance(files, _Downloaded):
        if path_problem(str(key)) or "/" in str(key):
            yield Rejected(printable(str(key)), place.row, "unsafe_name", f"{place}: key")
            return
        if fields.get("status") not in (None, "success"):
            detail = f"{place}: {printable(str(fields.get('error') or fields['status']))[:200]}"
            yield Rejected(f"{place.table}/{key}", place.row, "not_downloaded", detail)
            return
        path = files.path(str(key))
    else:
        path = image_path(url, config.images)
    extra: dict[str, object] = {**scores, "url": url}
    extra |= {n: fields[n] for n in ("language", "hash") if isinstance(fields.get(n), str | int)}
    text = fields["text"]
    source_id = f"{posixpath.splitext(place.table)[0]}/{key}" if key is not None else url
    texts = [text] if isinstance(text, str) else []
    yield from row_entries(
        Row(path, printable(source_id), "image", texts, url=url, claims=claims, extra=extra), place, config, files
    )


def _wanted(scores: Mapping[str, float], claims: Mapping[str, float], config: LaionConfig) -> bool:
    """Within all bounds; a row without the score of a bound is not."""
    lows = (("aesthetic", config.min_aesthetic), ("similarity", config.min_similarity))
    highs = (("pwatermark", config.max_watermark), ("punsafe", config.max_unsafe))
    side = min(claims.get("width", 0), claims.get("height", 0))
    return (
        all(low is None or scores.get(name, float("-inf")) >= low for name, low in lows)
        and all(high is None or scores.get(name, float("inf")) <= high for name, high in highs)
        and side >= config.min_side
    )
