"""Adapter `webvid`: WebVid's CSV files, whose column order differs between copies, and the videos on disk.

Columns: videoid, name (the caption), page_dir, duration, contentUrl, sometimes page_idx. An id can stand
under several page directories, so `page_dir/videoid` is the source id; ids are text (leading zeros count).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from dataprep.sources.adapter import ScanContext
from dataprep.sources.config_tables import WebVidConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.listing import Count, Entry, Rejected
from dataprep.sources.rows import MediaFiles, Place, Row, find_tables, limited, place_of, row_entries, tree_digest
from dataprep.sources.tables import Record, read_csv
from dataprep.sources.text import path_problem, printable
from m4v.core.errors import InputError
from m4v.core.storage import Storage

COLUMNS = ("videoid", "name", "page_dir", "duration", "contentUrl")
_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")
_LONGEST_S = 86_400.0


class WebVidAdapter:
    inside = False

    def entries(self, config: WebVidConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        tables = find_tables(location, config.csv, "WebVid CSV")
        folders = _Folders(location, config.videos)
        files = MediaFiles(location, context.digests, config.identity)
        yield from limited(self._rows(config, location, tables, folders, files), config.limit, context)

    def _rows(
        self, config: WebVidConfig, location: Storage, tables: list[str], folders: _Folders, files: MediaFiles
    ) -> Iterator[Entry]:
        seen, rows = KeySet(), 0
        for table in tables:
            for item in _records(location, table):
                rows += 1
                if isinstance(item, Rejected):
                    yield item
                else:
                    yield from _entries(item, table, config, folders, files, seen)
        yield Count("rows", rows)

    def probe(self, config: WebVidConfig, location: Storage | None, digests: DigestCache) -> str:
        return tree_digest(location, config.kind)


class _Folders:
    """Which folders hold a page directory: WebVid is unpacked as one tree or as a tree per part."""

    def __init__(self, location: Storage, given: tuple[str, ...]) -> None:
        others = sorted(n for n in location.directories() if not n.startswith(".") and n != "videos")
        self._folders = given or ("videos", *others, "")
        self._holding: dict[str, list[str]] = {}
        for folder in self._folders:
            for page in _directories(location, folder):
                self._holding.setdefault(page, []).append(folder)
        self._first = self._folders[0]

    def paths(self, page: str, name: str) -> list[str]:
        """Where a video may lie; the first is where it belongs when it is nowhere."""
        folders = self._holding.get(page, [self._first]) if page else self._folders
        return ["/".join(part for part in (folder, page, name) if part) for folder in folders]


def _directories(location: Storage, folder: str) -> list[str]:
    if not location.is_local:
        return location.directories(folder)
    try:
        with os.scandir(f"{location.uri}/{folder}") as found:
            return sorted(e.name for e in found if e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _records(location: Storage, table: str) -> Iterator[Record | Rejected]:
    with location.open(table) as stream:
        first = True
        for item in read_csv(stream, table):
            if isinstance(item, Rejected) and item.reason == "bad_table":
                raise InputError(f"CSV cannot be read: {item.detail}", value=table, where=location.uri)
            if first and isinstance(item, Record):
                if absent := [c for c in COLUMNS if c not in item.fields]:
                    raise InputError(
                        f"CSV lacks the columns {', '.join(absent)}", value=table, where=location.uri,
                        next_step=f"its columns are {', '.join(list(item.fields)[:20])}",
                    )  # fmt: skip
                first = False
            yield item


def _entries(
    item: Record, table: str, config: WebVidConfig, folders: _Folders, files: MediaFiles, seen: KeySet
) -> Iterator[Entry]:
    place = place_of(table, item)
    fields = {name: str(value).strip() for name, value in item.fields.items()}
    video, page = fields["videoid"], fields["page_dir"]
    if video == "videoid" and all(name == value for name, value in fields.items()):
        yield Count("repeated_headers")  # parts that were concatenated
        return
    source_id = f"{page}/{video}" if page else video
    problem = path_problem(source_id) or path_problem(video)
    if problem or "/" in video or "/" in page:
        yield Rejected(printable(source_id), place.row, "unsafe_name", f"{place}: {problem or 'names a folder'}")
        return
    if not seen.add(key_of(source_id)):
        yield Rejected(source_id, place.row, "duplicate_id", str(place))
        return
    yield from row_entries(_row(fields, source_id, folders, files, place), place, config, files)


def _row(fields: dict[str, str], source_id: str, folders: _Folders, files: MediaFiles, place: Place) -> Row:
    candidates = folders.paths(fields["page_dir"], f"{fields['videoid']}.mp4")
    path = next((p for p in candidates if len(candidates) > 1 and files.size(p) is not None), candidates[0])
    seconds = duration_s(fields["duration"])
    extra: dict[str, object] = {"duration_claimed": fields["duration"], "url": fields["contentUrl"]}
    if fields.get("page_idx"):
        extra["page_idx"] = fields["page_idx"]
    claims = {} if seconds is None else {"duration_s": seconds}
    url = fields["contentUrl"] or None
    return Row(path, source_id, "video", [fields["name"]], url=url, claims=claims, extra=extra)


def duration_s(text: str) -> float | None:
    """Seconds of a duration like PT00H01M02S; None for none, zero, or more than a day."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    return total if 0 < total <= _LONGEST_S else None
