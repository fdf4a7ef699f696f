"""Adapter `openvid`: OpenVid-1M as its CSV files describe it and as its archives unpack.

Columns (with spaces): video, caption, aesthetic score, motion score, temporal consistency score,
camera motion, frame, fps, seconds. Videos lie flat in one folder; names may begin with dashes. Rows stream,
so that a million need little memory.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import positive_number
from dataprep.sources.config import OpenVidConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Caption, Count, Entry, ListedFile, Rejected
from dataprep.sources.tables import Record, read_csv
from dataprep.sources.text import clean_caption, path_problem, printable
from m4v.core.errors import InputError
from m4v.core.storage import Storage

VIDEO, CAPTION, CAMERA = "video", "caption", "camera motion"
SCORES = {
    "aesthetic score": "aesthetic_score",
    "motion score": "motion_score",
    "temporal consistency score": "temporal_consistency_score",
}
CLAIMS = ("frame", "fps", "seconds")
COLUMNS = (VIDEO, CAPTION, *SCORES, CAMERA, *CLAIMS)
_TICK = 2000


class _Row(NamedTuple):
    name: str
    caption: str
    scores: dict[str, float]
    camera: str
    claims: dict[str, float]


class OpenVidAdapter:
    inside = False

    def entries(self, config: OpenVidConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        root = _root(location)
        videos = root / config.videos
        if not videos.is_dir():
            raise InputError(
                "folder of unpacked videos does not exist", value=config.videos, where=str(root),
                next_step="unpack OpenVid_part*.zip into it, or set `videos` of this source",
            )  # fmt: skip
        seen: dict[int, None] = {}
        listed = rows = matched = 0
        for csv_name in config.csv:
            for item in _records(root, csv_name):
                rows += 1
                if rows % _TICK == 0:
                    context.tick(rows, None)
                entry = item if isinstance(item, Rejected) else _entry(item, csv_name, config, videos, context, seen)
                if isinstance(entry, ListedFile):
                    matched += 1
                    if config.limit is not None and listed >= config.limit:
                        entry = Count("over_limit")
                    else:
                        listed += 1
                yield entry
        yield Count("rows", rows)
        with os.scandir(videos) as found:
            yield Count("files_without_row", max(0, sum(1 for e in found if e.is_file()) - matched))

    def probe(self, config: OpenVidConfig, location: Storage | None, digests: DigestCache) -> str:
        """From the CSV bytes and the name, size and time of every video: hashing terabytes is no planning."""
        if location is None:
            raise InputError("source has no location", value=config.kind, next_step="give the source a `location`")
        root, sha = _root(location), hashlib.sha256()
        for name in config.csv:
            path = _csv(root, name)
            sha.update(f"{name}\0{digests.digest(path, path.stat())}\n".encode())
        videos = root / config.videos
        if videos.is_dir():
            with os.scandir(videos) as found:
                lines = [os.fsencode(e.name) + b"\0%d\0%d\n" % _size_and_time(e) for e in found]
            for line in sorted(lines):
                sha.update(line)
        return sha.hexdigest()


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    status = entry.stat()
    return status.st_size, status.st_mtime_ns


def _root(location: Storage) -> Path:
    root = location.local_root
    if not root.is_dir():
        raise InputError(
            "collection directory does not exist", value=str(root),
            next_step="correct `location` of this source in the recipe (--set sources.NAME.location=DIRECTORY)",
        )  # fmt: skip
    return root


def _csv(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        raise InputError("CSV does not exist", value=name, where=str(root), next_step="set `csv` of this source")
    return path


def _records(root: Path, name: str) -> Iterator[Record | Rejected]:
    with _csv(root, name).open("rb") as stream:
        first = True
        for item in read_csv(stream, name, ","):
            if isinstance(item, Rejected) and item.reason == "bad_table":
                raise InputError(f"CSV cannot be read: {item.detail}", value=name, where=str(root))
            if first and isinstance(item, Record):
                absent = [c for c in COLUMNS if c not in item.fields]
                if absent:
                    raise InputError(
                        f"CSV lacks the columns {', '.join(absent)}", value=name, where=str(root),
                        next_step=f"its columns are {', '.join(item.fields)}",
                    )  # fmt: skip
                first = False
            yield item


def _entry(
    item: Record,
    csv_name: str,
    config: OpenVidConfig,
    videos: Path,
    context: ScanContext,
    seen: dict[int, None],
) -> Entry:
    where = f"{csv_name} row {item.row}, byte {item.offset}"
    try:
        row = _parse(item.fields)
    except ValueError as error:
        return Rejected(csv_name, item.row, "bad_row", f"byte {item.offset}: {error}")
    if (problem := path_problem(row.name)) or "/" in row.name:
        return Rejected(printable(row.name), item.row, "unsafe_name", f"{where}: {problem or 'names a folder'}")
    if not _wanted(row, config):
        return Count("filtered_by_scores")
    key = int.from_bytes(hashlib.blake2b(row.name.encode(), digest_size=8).digest(), "little")
    if key in seen:
        return Rejected(row.name, item.row, "duplicate_id", where)
    seen[key] = None
    clean = clean_caption(row.caption, config.max_caption_chars)
    if clean.problem:
        return Rejected(row.name, item.row, clean.problem, where)
    return _listed(row, item, csv_name, where, clean.text, config, videos, context.digests)


def _listed(
    row: _Row,
    item: Record,
    csv_name: str,
    where: str,
    caption: str,
    config: OpenVidConfig,
    videos: Path,
    digests: DigestCache,
) -> Entry:
    relative, path = f"{config.videos}/{row.name}", f"{videos}/{row.name}"
    try:
        status = os.stat(path)  # noqa: PTH116 - a million Path objects cost seconds
        if not stat.S_ISREG(status.st_mode):
            return Rejected(relative, item.row, "missing_file", f"{where}: no regular file")
        if status.st_size == 0:
            return Rejected(relative, item.row, "empty", f"{where}: file has no bytes")
        digest = digests.digest(path, status, config.identity)
    except FileNotFoundError:
        return Rejected(relative, item.row, "missing_file", where)
    except OSError as error:
        return Rejected(relative, item.row, "unreadable", f"{where}: {type(error).__name__}: {error.strerror}")
    return ListedFile(
        relative, status.st_size, digest, "video", row.name, config.licence, (Caption(None, None, caption, csv_name),),
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
