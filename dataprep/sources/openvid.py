"""Adapter `openvid`: OpenVid-1M as its CSV files describe it, unpacked or in its archives.

Columns (with spaces): video, caption, aesthetic score, motion score, temporal consistency score,
camera motion, frame, fps, seconds. Videos lie flat in one folder; names may begin with dashes. Rows stream,
so that a million need little memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import positive_number
from dataprep.sources.config import OpenVidConfig
from dataprep.sources.config_base import Identity
from dataprep.sources.digests import DigestCache
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.listing import Caption, Count, Entry, ListedFile, Rejected
from dataprep.sources.openvid_archives import ArchiveIndex, archive_names, archives_digest, hd_videos
from dataprep.sources.rows import MediaFiles, Place, limited, place_of, require_directory
from dataprep.sources.tables import Record, read_csv
from dataprep.sources.text import clean_caption, path_problem, printable
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage

VIDEO, CAPTION, CAMERA = "video", "caption", "camera motion"
SCORES = {
    "aesthetic score": "aesthetic_score",
    "motion score": "motion_score",
    "temporal consistency score": "temporal_consistency_score",
}
CLAIMS = ("frame", "fps", "seconds")
COLUMNS = (VIDEO, CAPTION, *SCORES, CAMERA, *CLAIMS)


class _Row(NamedTuple):
    name: str
    caption: str
    scores: dict[str, float]
    camera: str
    claims: dict[str, float]


class _Found(NamedTuple):
    """A video of the collection; an empty path or no size when it is not there."""

    path: str
    size: int | None
    digest: str = ""


_Find = Callable[[str], _Found]  # raises OSError, EOFError or DataIntegrityError when it cannot be read


class OpenVidAdapter:
    inside = False

    def entries(self, config: OpenVidConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        require_directory(location)
        if config.archives:
            with ArchiveIndex(location, archive_names(location, config.archives)) as index:
                yield from index.read()
                identity = config.identity if context.digests.reads else "sampled"
                yield from self._scan(config, location, context, _in_archives(index, identity), len(index))
            return
        files = MediaFiles(location, context.digests, config.identity)
        if location.is_local and not (location.local_root / config.videos).is_dir():
            raise InputError(
                "folder of unpacked videos does not exist", value=config.videos, where=location.uri,
                next_step="unpack OpenVid_part*.zip into it, or set `videos` or `archives` of this source",
            )  # fmt: skip
        yield from self._scan(config, location, context, _in_folder(files, config), None)

    def _scan(
        self, config: OpenVidConfig, location: Storage, context: ScanContext, find: _Find, videos: int | None
    ) -> Iterator[Entry]:
        """Entries of all rows. `videos`: how many there are, None when the folder is still to be counted."""
        hd = hd_videos(location, config.hd_list) if config.hd_list else None
        seen, rows, matched = KeySet(), 0, 0

        def entries() -> Iterator[Entry]:
            nonlocal rows, matched
            for csv_name in config.csv:
                for item in _records(location, csv_name):
                    rows += 1
                    entry = item if isinstance(item, Rejected) else _entry(item, csv_name, config, find, seen, hd)
                    matched += isinstance(entry, ListedFile)
                    yield entry

        yield from limited(entries(), config.limit, context)
        yield Count("rows", rows)
        there = videos if videos is not None else _files_in(location, config.videos)
        yield Count("files_without_row", max(0, there - matched))

    def probe(self, config: OpenVidConfig, location: Storage | None, digests: DigestCache) -> str:
        """From the CSV bytes and the name, size and time of every video or archive: hashing terabytes is no
        planning."""
        if location is None:
            raise InputError("source has no location", value=config.kind, next_step="give the source a `location`")
        require_directory(location)
        sha = hashlib.sha256()
        for name in (*config.csv, *((config.hd_list,) if config.hd_list else ())):
            _require(location, name)
            sha.update(f"{name}\0{digests.of(location, name, _size(location, name))}\n".encode())
        if config.archives:
            sha.update(archives_digest(location, archive_names(location, config.archives)).encode())
            return sha.hexdigest()
        for line in sorted(_video_lines(location, config.videos)):
            sha.update(line)
        return sha.hexdigest()


def _in_folder(files: MediaFiles, config: OpenVidConfig) -> _Find:
    def find(name: str) -> _Found:
        path = f"{config.videos}/{name}"
        size = files.size(path)
        return _Found(path, size, files.digest(path, size) if size else "")

    return find


def _in_archives(index: ArchiveIndex, identity: Identity) -> _Find:
    def find(name: str) -> _Found:
        place = index.find(name)
        return _Found(name, None) if place is None else _Found(place.path, place.size, index.digest(place, identity))

    return find


def _video_lines(location: Storage, folder: str) -> Iterator[bytes]:
    """Name, size and (when local) time of every video of the folder."""
    if not location.is_local:
        for file in location.list(folder):
            yield f"{file.path}\0{file.size_bytes}\n".encode()
    elif (location.local_root / folder).is_dir():
        with os.scandir(location.local_root / folder) as found:
            for entry in found:
                status = entry.stat()
                yield os.fsencode(entry.name) + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns)


def _files_in(location: Storage, folder: str) -> int:
    if not location.is_local:
        return sum(1 for _ in location.list(folder))
    with os.scandir(location.local_root / folder) as found:
        return sum(1 for e in found if e.is_file())


def _size(location: Storage, name: str) -> int:
    with location.open(name) as stream:
        return stream.seek(0, os.SEEK_END)


def _require(location: Storage, name: str) -> None:
    if not location.exists(name):
        raise InputError("CSV does not exist", value=name, where=location.uri, next_step="set `csv` of this source")


def _records(location: Storage, name: str) -> Iterator[Record | Rejected]:
    _require(location, name)
    with location.open(name) as stream:
        first = True
        for item in read_csv(stream, name, ","):
            if isinstance(item, Rejected) and item.reason == "bad_table":
                raise InputError(f"CSV cannot be read: {item.detail}", value=name, where=location.uri)
            if first and isinstance(item, Record):
                absent = [c for c in COLUMNS if c not in item.fields]
                if absent:
                    raise InputError(
                        f"CSV lacks the columns {', '.join(absent)}", value=name, where=location.uri,
                        next_step=f"its columns are {', '.join(item.fields)}",
                    )  # fmt: skip
                first = False
            yield item


def _entry(item: Record, csv_name: str, config: OpenVidConfig, find: _Find, seen: KeySet, hd: KeySet | None) -> Entry:
    where = place_of(csv_name, item)
    try:
        row = _parse(item.fields)
    except ValueError as error:
        return Rejected(csv_name, item.row, "bad_row", f"byte {item.offset}: {error}")
    if (problem := path_problem(row.name)) or "/" in row.name:
        return Rejected(printable(row.name), item.row, "unsafe_name", f"{where}: {problem or 'names a folder'}")
    if not _wanted(row, config):
        return Count("filtered_by_scores")
    if hd is not None and key_of(row.name) not in hd:
        return Count("not_in_hd_list")
    if not seen.add(key_of(row.name)):
        return Rejected(row.name, item.row, "duplicate_id", str(where))
    clean = clean_caption(row.caption, config.max_caption_chars)
    if clean.problem:
        return Rejected(row.name, item.row, clean.problem, str(where))
    return _listed(row, where, clean.text, config, find)


def _listed(row: _Row, where: Place, caption: str, config: OpenVidConfig, find: _Find) -> Entry:
    try:
        path, size, digest = find(row.name)
    except DataIntegrityError as error:
        return Rejected(row.name, where.row, "damaged_member", f"{where}: {error.message}")
    except (OSError, EOFError) as error:
        return Rejected(row.name, where.row, "unreadable", f"{where}: {type(error).__name__}: {error}")
    if size is None:
        return Rejected(path, where.row, "missing_file", str(where))
    if size == 0:
        return Rejected(path, where.row, "empty", f"{where}: file has no bytes")
    return ListedFile(
        path, size, digest, "video", row.name, config.licence, (Caption(None, None, caption, where.table),),
        fps=row.claims.get("fps"), duration_s=row.claims.get("seconds"),
        extra={**row.scores, "camera_motion": row.camera, "frames_claimed": row.claims.get("frame")},
    )  # fmt: skip


def _parse(fields: Mapping[str, object]) -> _Row:
    """Raises ValueError naming the column. Claims that make no sense are dropped: the file is measured later."""
    scores = {}
    for column, name in SCORES.items():
        try:
            scores[name] = float(str(fields[column]))
        except ValueError:
            raise ValueError(f"{column} {str(fields[column])[:40]!r} is no number") from None
        if scores[name] != scores[name] or abs(scores[name]) == float("inf"):
            raise ValueError(f"{column} is not finite")
    claims = {c: n for c in CLAIMS if (n := positive_number(fields[c])) is not None}
    return _Row(str(fields[VIDEO]).strip(), str(fields[CAPTION]), scores, str(fields[CAMERA]).strip(), claims)


def _wanted(row: _Row, config: OpenVidConfig) -> bool:
    bounds = (
        (config.min_aesthetic, None, "aesthetic_score"),
        (config.min_motion, config.max_motion, "motion_score"),
        (config.min_temporal_consistency, None, "temporal_consistency_score"),
    )
    for low, high, name in bounds:
        if (low is not None and row.scores[name] < low) or (high is not None and row.scores[name] > high):
            return False
    return config.camera_motion is None or row.camera in config.camera_motion
