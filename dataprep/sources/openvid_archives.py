"""Where OpenVid's videos lie in its zip archives, which the CSV does not say, and the list of its HD part."""

from __future__ import annotations

import hashlib
import posixpath
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple

from dataprep.sources.archives import member_chunks, member_path, part_names, zip_members
from dataprep.sources.config_base import Identity
from dataprep.sources.entries import Count, Entry, Rejected
from dataprep.sources.json_stream import read_json_array
from dataprep.sources.keys import KeySet, key_of
from dataprep.sources.rows import find_tables
from dataprep.sources.text import printable
from m4v.core.errors import InputError
from m4v.core.storage import Storage

_RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")
_PART = re.compile(r"(.*)_part[a-z]{2}")
_MAX_RANGE = 100_000


class Place(NamedTuple):
    """A member of an archive."""

    archive: str
    name: str
    size: int
    crc32: int

    @property
    def path(self) -> str:
        return member_path(self.archive, self.name)


def archive_names(location: Storage, patterns: Iterable[str]) -> list[str]:
    """Archives that the patterns mean, split ones once and by the name of the whole."""
    names: dict[str, None] = {}
    for pattern in patterns:
        if match := _RANGE.fullmatch(pattern):
            first, last = int(match[2]), int(match[3])
            if last - first >= _MAX_RANGE:
                raise InputError("range of archives is too long", value=pattern)
            names |= dict.fromkeys(f"{match[1]}{n}{match[4]}" for n in range(first, last + 1))
        elif any(c in pattern for c in "*?"):
            found = find_tables(location, (pattern,), "archive")
            names |= dict.fromkeys(_whole(name) for name in found if _whole(name).endswith(".zip"))
        else:
            names[_whole(pattern)] = None
    return list(names)


def _whole(name: str) -> str:
    match = _PART.fullmatch(name)
    return f"{match[1]}.zip" if match else name


class ArchiveIndex:
    """Videos of many archives by their name without folders, as the official script unpacks them, in a private
    temporary database."""

    def __init__(self, location: Storage, archives: Iterable[str]) -> None:
        self._location, self._archives = location, list(archives)

    def __enter__(self) -> ArchiveIndex:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute(
            "CREATE TABLE video (key PRIMARY KEY, archive INT, name, size INT, crc32 INT) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def read(self) -> Iterator[Entry]:
        """Read every directory; yields what must not be used. The same name and bytes twice are counted, other
        bytes under a name that is taken are rejected."""
        for number, archive in enumerate(self._archives):
            for member in zip_members(self._location, archive):
                path = printable(member_path(archive, member.name))
                if member.problem is not None:
                    yield Rejected(path, None, "unsafe_member", member.problem)
                    continue
                key = posixpath.basename(member.name)
                row = (key, number, member.name, member.size, member.crc32)
                if self._database.execute("INSERT OR IGNORE INTO video VALUES (?, ?, ?, ?, ?)", row).rowcount:
                    continue
                first = self.find(key)
                if first is not None and (first.size, first.crc32) == (member.size, member.crc32):
                    yield Count("members_twice")
                else:
                    yield Rejected(path, None, "duplicate_member", f"other bytes than {first.path if first else key}")
        yield Count("archives", len(self._archives))

    def find(self, video: str) -> Place | None:
        row = self._database.execute("SELECT archive, name, size, crc32 FROM video WHERE key = ?", (video,)).fetchone()
        return None if row is None else Place(self._archives[row[0]], *row[1:])

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM video").fetchone()[0])

    def digest(self, place: Place, identity: Identity) -> str:
        """sha256 of the bytes (read, CRC checked) for `full`, else of size, CRC-32 and name."""
        if identity == "sampled":
            text = f"zip:{place.size}:{place.crc32:08x}:{posixpath.basename(place.name)}"
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        sha = hashlib.sha256()
        for chunk in member_chunks(self._location, place.archive, place.name):
            sha.update(chunk)
        return sha.hexdigest()


def archives_digest(location: Storage, archives: Iterable[str]) -> str:
    """Digest over the name, size (and time, when local) of every archive file."""
    sha = hashlib.sha256()
    for archive in archives:
        for name in part_names(location, archive):
            with location.open(name) as stream:
                size = stream.seek(0, 2)
            time = location.modified_at(name) if location.is_local else 0
            sha.update(f"{name}\0{size}\0{time}\n".encode())
    return sha.hexdigest()


def hd_videos(location: Storage, name: str) -> KeySet:
    """Keys of the videos that OpenVidHD.json names: a list of objects `{"part1": ["a.mp4", …]}`."""
    keys = KeySet()
    with location.open(name) as stream:
        for item in read_json_array(stream, name):
            if isinstance(item, Rejected):
                raise InputError(f"HD list cannot be read: {item.detail}", value=name, where=location.uri)
            for video in _videos(item.fields, name):
                keys.add(key_of(posixpath.basename(video)))
    return keys


def _videos(fields: Mapping[str, object], where: str) -> Iterator[str]:
    for part, videos in fields.items():
        if not isinstance(videos, list) or not all(isinstance(v, str) for v in videos):
            raise InputError("HD list has a part that is no list of file names", value=part, where=where)
        yield from videos
