"""Adapter `pyramidflow`: its annotation files in, and written out again for its trainer and its extractors.

Lines: `{"video": path, "text": caption}` or `{"image": …}`, perhaps `frames` (indexes of source frames), `latent`
and `text_fea` (files of its own extractors, recorded and never opened). VAE training needs no text.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import MAX_FRAME
from dataprep.sources.config_tables import PyramidFlowConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.keys import SpanGroups
from dataprep.sources.listing import Count, Entry, ListedFile, Media, Rejected
from dataprep.sources.rows import MediaFiles, Place, find_tables, limited, place_of, texts_of, tree_digest
from dataprep.sources.spans import Annotation, grouped
from dataprep.sources.tables import read_json_lines
from dataprep.sources.text import path_problem, printable
from m4v.core.storage import Storage, replacing

MAX_FRAMES_LISTED = 4096
MEDIA: tuple[Media, ...] = ("video", "image")


class PyramidFlowAdapter:
    inside = False

    def entries(self, config: PyramidFlowConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        tables = find_tables(location, config.annotations, "annotation file")
        files = MediaFiles(location, context.digests, config.identity)
        with SpanGroups() as groups:
            rows = (entry for table in tables for entry in annotation_rows(table, location, config.media))
            yield from limited(grouped(rows, groups, config, files), config.limit, context)

    def probe(self, config: PyramidFlowConfig, location: Storage | None, digests: DigestCache) -> str:
        return tree_digest(location, config.kind)


def annotation_rows(table: str, location: Storage, folder: str) -> Iterator[Annotation | Entry]:
    number = 0
    with location.open(table) as stream:
        for item in read_json_lines(stream, table):
            number += 1
            if isinstance(item, Rejected):
                yield item
            else:
                yield _annotation(item.fields, place_of(table, item), folder)
    yield Count("rows", number)


def _annotation(fields: Mapping[str, object], place: Place, folder: str) -> Annotation | Entry:
    media = next((m for m in MEDIA if isinstance(fields.get(m), str)), None)
    if media is None:
        return Rejected(place.table, place.row, "bad_row", f"{place}: names neither a video nor an image")
    name = str(fields[media])
    path = posixpath.join(folder, name.removeprefix("./"))
    if problem := path_problem(path):
        return Rejected(printable(name), place.row, "unsafe_name", f"{place}: {problem}")
    frames = fields.get("frames")
    first = last = None
    extra: dict[str, object] = {k: v for k in ("latent", "text_fea") if isinstance(v := fields.get(k), str)}
    if media == "video" and frames not in (None, []):
        indexes = _indexes(frames)
        if not indexes:
            return Rejected(path, place.row, "bad_range", f"{place}: frames are not rising whole numbers from 0 on")
        first, last = indexes[0], indexes[-1]
        if len(indexes) != last - first + 1:
            extra["frames"] = indexes
    return Annotation(path, media, first, last, texts_of(fields.get("text")), {}, extra, place)


def _indexes(frames: object) -> list[int]:
    """Rising frame indexes; empty when they are not."""
    if not isinstance(frames, list) or len(frames) > MAX_FRAMES_LISTED:
        return []
    whole = [f for f in frames if isinstance(f, int) and not isinstance(f, bool) and 0 <= f <= MAX_FRAME]
    rising = len(whole) == len(frames) and all(a < b for a, b in itertools.pairwise(whole))
    return whole if rising else []


class Line(NamedTuple):
    """One line: a medium, a caption of it (None for VAE training), and the frames meant (None = from the start)."""

    media: Media
    path: str
    text: str | None = None
    frames: tuple[int, ...] | None = None
    latent: str | None = None
    text_fea: str | None = None

    def fields(self) -> dict[str, object]:
        given: dict[str, object] = {self.media: self.path}
        for name, value in (("text", self.text), ("latent", self.latent), ("text_fea", self.text_fea)):
            if value is not None:
                given[name] = value
        if self.frames is not None:
            given["frames"] = list(self.frames)
        return given


class KeptClip(Protocol):
    """What a line needs of a curated clip."""

    @property
    def path(self) -> str: ...
    @property
    def media(self) -> Media: ...
    @property
    def first_frame(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def captions(self) -> tuple[str, ...]: ...


def lines_of_files(files: Iterable[ListedFile], every_caption: bool = False) -> Iterator[Line]:
    """Lines of listed files: with the first caption, or one line a caption; without one a line without text."""
    for file in files:
        frames: tuple[int, ...] | None = None
        if isinstance(listed := file.extra.get("frames"), list):
            frames = tuple(listed)
        elif file.first_frame is not None and file.last_frame is not None:
            frames = tuple(range(file.first_frame, file.last_frame + 1))
        latent, text_fea = (v if isinstance(v := file.extra.get(k), str) else None for k in ("latent", "text_fea"))
        texts: list[str | None] = [c.text for c in file.captions] or [None]
        for text in texts if every_caption else texts[:1]:
            yield Line(file.media, file.path, text, frames, latent, text_fea)


def lines_of_clips(clips: Iterable[KeptClip], every_caption: bool = False) -> Iterator[Line]:
    """Lines of curated clips: the trainer's extractor then takes just their frames."""
    for clip in clips:
        still = clip.media == "image"
        frames = None if still else tuple(range(clip.first_frame, clip.first_frame + clip.frames))
        texts: tuple[str | None, ...] = clip.captions or (None,)
        for text in texts if every_caption else texts[:1]:
            yield Line(clip.media, clip.path, text, frames)


def export(lines: Iterable[Line], target: Path) -> int:
    """Write the lines to a file, atomically; returns how many."""
    count = 0
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(json.dumps(line.fields(), ensure_ascii=False) + "\n")
            count += 1
    return count
