"""What a scan of a collection yields: usable files, rejections with their reason, and counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Media = Literal["video", "image"]
CROP = "crop"  # key of `ListedFile.extra`: [x0, y0, x1, y1], in pixels of the claimed size


class Caption(NamedTuple):
    """A caption of frames first..last (inclusive), or of the whole file when both are None. `flags` name what was
    repaired in its text."""

    first_frame: int | None
    last_frame: int | None
    text: str
    origin: str
    flags: tuple[str, ...] = ()

    def same(self, other: Caption) -> bool:
        """Equal but for repairs."""
        return self[:4] == other[:4]


class Wanted(NamedTuple):
    """Where a file that is not there may be fetched from, and what its table says of it."""

    url: str
    source_id: str
    media: Media
    claims: Mapping[str, object]


class Rejected(NamedTuple):
    """Something that is not used, and why. `row` counts the records of a table from 1, its header excluded."""

    path: str
    row: int | None
    reason: str
    detail: str = ""
    wanted: Wanted | None = None


@dataclass(frozen=True)
class ListedFile:
    """One usable file. `path` is relative to the collection; `extra` are JSON facts of its own kind."""

    path: str
    size_bytes: int
    sha256: str
    media: Media
    source_id: str
    licence: str
    captions: tuple[Caption, ...] = ()
    first_frame: int | None = None
    last_frame: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration_s: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Count(NamedTuple):
    """Adds to a counter of `source.json`: things looked at and rightly left out (no media, filtered rows)."""

    name: str
    number: int = 1


Entry = ListedFile | Rejected | Count


@dataclass
class SourceListing:
    """A whole listing in memory, for small collections and tests."""

    files: list[ListedFile] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> SourceListing:
        listing = cls()
        for entry in entries:
            if isinstance(entry, ListedFile):
                listing.files.append(entry)
            elif isinstance(entry, Rejected):
                listing.rejected.append(entry)
            else:
                listing.counts[entry.name] += entry.number
        return listing

    def digest(self) -> str:
        return entries_digest([*self.files, *self.rejected, *(Count(*c) for c in sorted(self.counts.items()))])


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_line(value: object) -> str:
    """Compact JSON with sorted keys; the RFC 8785 encoder would take a third of a million-row scan."""
    return _ENCODER.encode(value)


def entry_row(entry: Entry) -> dict[str, object]:
    if isinstance(entry, ListedFile):
        row = dict(vars(entry))
        del row["captions"]
        row["extra"] = canonical_line(row["extra"])
        return row
    row = entry._asdict()
    row.pop("wanted", None)  # has a table of its own
    return row


def entries_digest(entries: Iterable[Entry]) -> str:
    """Digest of a stream of entries; equal listings, equal digests."""
    sha = hashlib.sha256()
    for entry in entries:
        captions = entry.captions if isinstance(entry, ListedFile) else ()
        sha.update(
            canonical_line([type(entry).__name__, entry_row(entry), captions]).encode("utf-8", "backslashreplace")
        )
        sha.update(b"\n")
    return sha.hexdigest()
