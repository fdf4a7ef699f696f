"""Shared by adapters whose tables name media files: looking a file up, and turning a row into an entry."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dataprep.download.addresses import host_rule
from dataprep.download.state import state_digest
from dataprep.download.urls import url_problem
from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import whole
from dataprep.sources.config_base import Adapter, Identity, Tables
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Caption, Count, Entry, ListedFile, Media, Rejected, Wanted
from dataprep.sources.tables import Record
from dataprep.sources.text import clean_caption, path_problem, printable, repairs
from dataprep.sources.tree import IMAGE_SUFFIXES, VIDEO_SUFFIXES, glob_regex
from m4v.core.errors import InputError
from m4v.core.storage import Storage

TICK_ROWS = 2000


class Place(NamedTuple):
    """Where a row stands. `offset` is the byte at which it begins, None where that is unknown."""

    table: str
    row: int
    offset: int | None

    def __str__(self) -> str:
        return f"{self.table} row {self.row}" + (f", byte {self.offset}" if self.offset is not None else "")


def place_of(table: str, record: Record) -> Place:
    return Place(table, record.row, record.offset)


class MediaFiles:
    """Files of a collection by their path. A local file is looked at when asked for; a remote collection is
    listed once, so that a million rows are not a million requests."""

    def __init__(self, location: Storage, digests: DigestCache, identity: Identity) -> None:
        self.location, self.digests, self.identity = location, digests, identity
        self._sizes: dict[str, int] | None = None
        self._last: tuple[str, os.stat_result] | None = None  # a file's digest follows its size

    def size(self, path: str) -> int | None:
        """Size in bytes, None when there is no such regular file; raises OSError when it cannot be looked at."""
        if self.location.is_local:
            try:
                status = os.stat(f"{self.location.uri}/{path}")  # noqa: PTH116 - a million Path objects cost seconds
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return None
                raise
            self._last = path, status
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        if self._sizes is None:
            self._sizes = {f.path: f.size_bytes for f in self.location.list()}
        return self._sizes.get(path)

    def digest(self, path: str, size: int) -> str:
        if self._last is not None and self._last[0] == path:
            return self.digests.digest(f"{self.location.uri}/{path}", self._last[1], self.identity)
        return self.digests.of(self.location, path, size, self.identity)


class Row(NamedTuple):
    """What a row says of one file (or of frames first..last of it, inclusive)."""

    path: str
    source_id: str
    media: Media
    texts: Sequence[str]
    first: int | None = None
    last: int | None = None
    url: str | None = None
    claims: Mapping[str, float] = {}  # width, height, fps, duration_s
    extra: Mapping[str, object] = {}
    licence: str | None = None


def row_entries(row: Row, place: Place, config: Tables, files: MediaFiles) -> Iterator[Entry]:
    """The entry of a row, after a rejection for each caption that cannot be used while others can."""
    if problem := path_problem(row.path):
        yield Rejected(printable(row.path), place.row, "unsafe_name", f"{place}: {problem}")
        return
    captions, problems, repaired = clean_captions(row.texts, row.first, row.last, place.table, config)
    if not captions and config.require_captions:
        yield Rejected(row.path, place.row, problems[0] if problems else "missing_caption", str(place))
        return
    try:
        size = files.size(row.path)
        digest = files.digest(row.path, size) if size else ""
    except (OSError, EOFError) as error:
        yield Rejected(row.path, place.row, "unreadable", f"{place}: {type(error).__name__}: {error}")
        return
    if size is None:
        yield missing(row, place, config)
        return
    if size == 0:
        yield Rejected(row.path, place.row, "empty", f"{place}: file has no bytes")
        return
    for problem in problems:
        yield Rejected(row.path, place.row, problem, f"{place}: one of {len(row.texts)} captions")
    if repaired:
        yield Count("captions_repaired", repaired)
    yield listed_file(row, size, digest, captions, config)


def listed_file(row: Row, size: int, digest: str, captions: Iterable[Caption], config: Adapter) -> ListedFile:
    claims = row.claims
    return ListedFile(
        row.path, size, digest, row.media, row.source_id, row.licence or config.licence, tuple(captions),
        row.first, row.last, whole(claims.get("width")), whole(claims.get("height")), claims.get("fps"),
        claims.get("duration_s"), row.extra,
    )  # fmt: skip


def missing(row: Row, place: Place, config: Tables) -> Rejected:
    """A row whose file is not there; with a usable URL it says where to fetch it."""
    if row.url is None:
        return Rejected(row.path, place.row, "missing_file", str(place))
    allow = config.download.allow if config.download is not None else ()
    if problem := url_problem(row.url, host_rule(allow)):
        return Rejected(row.path, place.row, "unsafe_url", f"{place}: {problem}")
    wanted = Wanted(row.url, row.source_id, row.media, {**row.claims, **row.extra})
    return Rejected(row.path, place.row, "missing_file", str(place), wanted)


def clean_captions(
    texts: Sequence[str], first: int | None, last: int | None, origin: str, config: Adapter
) -> tuple[list[Caption], list[str], int]:
    """Usable captions, reasons of those that are not, and how many were repaired. Equal texts stand once."""
    captions: list[Caption] = []
    problems: list[str] = []
    repaired = 0
    for raw in texts:
        clean = clean_caption(raw, config.max_caption_chars)
        caption = Caption(first, last, clean.text, origin)
        if clean.problem is not None:
            problems.append(clean.problem)
        elif not any(caption.same(other) for other in captions):
            captions.append(caption._replace(flags=repairs(raw)) if clean.changed else caption)
            repaired += clean.changed
    return captions, problems, repaired


def texts_of(value: object) -> list[str]:
    """Captions in a cell or JSON value: a string or a list of strings; anything else is none."""
    if isinstance(value, list):
        return [v for v in value if isinstance(v, str)]
    return [value] if isinstance(value, str) else []


def media_of(path: str) -> Media | None:
    """By the suffix; None when it is of neither medium."""
    suffix = posixpath.splitext(path)[1].lower()
    return "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else None


def find_tables(location: Storage, patterns: Sequence[str], what: str) -> list[str]:
    """Files that names or globs (of one folder each) mean, in the order of the patterns, then by name.

    Raises InputError when none is there.
    """
    require_directory(location)
    found: dict[str, None] = {}
    for pattern in patterns:
        folder, name = posixpath.split(pattern)
        if not any(c in pattern for c in "*?"):
            names = [pattern] if location.exists(pattern) else []
        else:
            regex = glob_regex(name)
            names = [f.path for f in location.files(folder) if _matches(f.path, regex)]
        found |= dict.fromkeys(sorted(names))
    if not found:
        raise InputError(
            f"no {what} found", value=list(patterns), where=location.uri, next_step="name it in the source's adapter"
        )
    return list(found)


def _matches(path: str, regex: re.Pattern[str]) -> bool:
    name = posixpath.basename(path)
    return not name.startswith(".") and regex.match(name) is not None


def require_directory(location: Storage) -> None:
    if location.is_local and not location.local_root.is_dir():
        raise InputError(
            "collection directory does not exist", value=location.uri,
            next_step="correct `location` of this source in the recipe (--set sources.NAME.location=DIRECTORY)",
        )  # fmt: skip


def tree_digest(location: Storage | None, kind: str) -> str:
    """Digest over path, size and time of every file (path and size when remote), and over what a download failed
    at: changes whenever a scan would, without reading a byte of media."""
    if location is None:
        raise InputError("source has no location", value=kind, next_step="give the source a `location` in the recipe")
    require_directory(location)
    sha = hashlib.sha256()
    if location.is_local:
        for line in _local_lines(location.uri, ""):
            sha.update(line)
    else:
        for file in location.list():
            sha.update(f"{file.path}\0{file.size_bytes}\n".encode(errors="surrogatepass"))
    if (failed := state_digest(location)) is not None:
        sha.update(failed.encode())
    return sha.hexdigest()


def _local_lines(root: str, folder: str) -> Iterator[bytes]:
    with os.scandir(f"{root}/{folder}" if folder else root) as found:
        entries = sorted(found, key=lambda e: e.name)
    for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _local_lines(root, path)
        elif entry.is_file():
            status = entry.stat()
            yield os.fsencode(path) + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns)


def limited(entries: Iterable[Entry], limit: int | None, context: ScanContext) -> Iterator[Entry]:
    """Pass entries on; files past `limit` become a count. Reports progress."""
    listed = 0
    for number, entry in enumerate(entries, start=1):
        if number % TICK_ROWS == 0:
            context.tick(number, None)
        if isinstance(entry, ListedFile):
            if limit is not None and listed >= limit:
                yield Count("over_limit")
                continue
            listed += 1
        yield entry
