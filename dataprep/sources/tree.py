"""Adapters `folder` (videos) and `images`: files below a directory or an `s3://` prefix, captions beside them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from dataprep.sources.adapter import ScanContext
from dataprep.sources.captions import CaptionIndex, FileFacts, whole
from dataprep.sources.config import FolderConfig, GeneratedConfig, ImagesConfig
from dataprep.sources.digests import DigestCache
from dataprep.sources.listing import Caption, Count, Entry, ListedFile, Media, Rejected, entries_digest
from dataprep.sources.text import path_problem, printable
from m4v.core.errors import InputError
from m4v.core.storage import Storage, StoredFile

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp",
    ".gif", ".y4m",
))
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"))
# fmt: on
TreeConfig = FolderConfig | ImagesConfig | GeneratedConfig


@cache
def glob_regex(glob: str) -> re.Pattern[str]:
    """`*` and `?` stay within a folder, `**` crosses folders."""
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        else:
            out, i = out + {"*": "[^/]*", "?": "[^/]"}.get(glob[i], re.escape(glob[i])), i + 1
    return re.compile(out + r"\Z", re.DOTALL)


class TreeAdapter:
    """Lists one medium of a tree; everything else in it is captions, or counted as ignored."""

    inside = False

    def __init__(self, media: Media) -> None:
        self._media_of: Callable[[str], Media | None] = lambda path: media
        self._suffixes = VIDEO_SUFFIXES if media == "video" else IMAGE_SUFFIXES

    def entries(self, config: TreeConfig, location: Storage, context: ScanContext) -> Iterator[Entry]:
        if location.is_local and not location.local_root.is_dir():
            raise InputError(
                "collection directory does not exist", value=location.uri,
                next_step="correct `location` of this source in the recipe (--set sources.NAME.location=DIRECTORY)",
            )  # fmt: skip
        stored = [f for f in location.list() if not _hidden(f.path)]
        media = sorted((f for f in stored if self._chosen(f.path, config)), key=lambda f: printable(f.path))
        usable = {f.path for f in media if path_problem(f.path) is None}
        texts = {f.path for f in stored if path_problem(f.path) is None} - usable
        index = self._index(location, texts, usable, config.max_caption_chars)
        yield from index.rejected
        yield Count("ignored", len(stored) - len(media) - len(index.used))
        rejected = {e.path for e in index.rejected if isinstance(e, Rejected)}
        listed = 0
        for number, file in enumerate(media):
            context.tick(number, len(media))
            entry = self._entry(file, config, location, index, context.digests)
            if isinstance(entry, Rejected) and entry.reason == "missing_caption" and entry.path in rejected:
                continue  # the record that left it without a caption has said so
            if isinstance(entry, ListedFile):
                if config.limit is not None and listed >= config.limit:
                    yield Count("over_limit")
                    continue
                listed += 1
            yield entry
        context.tick(len(media), len(media))

    def probe(self, config: TreeConfig, location: Storage | None, digests: DigestCache) -> str:
        if location is None:
            raise _no_location(config.kind)
        return entries_digest(self.entries(config, location, ScanContext(digests)))

    def _chosen(self, path: str, config: TreeConfig) -> bool:
        if posixpath.splitext(path)[1].lower() not in self._suffixes:
            return False
        included = any(glob_regex(g).match(path) for g in config.include)
        return included and not any(glob_regex(g).match(path) for g in config.exclude)

    def _entry(
        self, file: StoredFile, config: TreeConfig, location: Storage, index: CaptionIndex, digests: DigestCache
    ) -> Entry:
        if problem := path_problem(file.path):
            return Rejected(printable(file.path), None, "unsafe_name", problem)
        if file.size_bytes == 0:
            return Rejected(file.path, None, "empty", "file has no bytes")
        facts = index.files.get(file.path, FileFacts())
        frames = config.frames if isinstance(config, FolderConfig) else None
        captions = [c for c in facts.captions if _overlaps(c, frames)]
        if not captions and config.require_captions:
            outside = f", {len(facts.captions)} outside frames {list(frames)}" if frames and facts.captions else ""
            return Rejected(file.path, None, "missing_caption", f"no caption beside it{outside}")
        try:
            digest = digests.of(location, file.path, file.size_bytes)
        except OSError as error:
            return Rejected(file.path, None, "unreadable", f"{type(error).__name__}: {error.strerror}")
        claims = facts.claims
        first, last = frames or (None, None)
        return ListedFile(
            path=file.path,
            size_bytes=file.size_bytes,
            sha256=digest,
            media=self._media_of(file.path) or "video",
            source_id=file.path,
            licence=facts.licence or config.licence,
            captions=tuple(captions),
            first_frame=first,
            last_frame=last,
            width=whole(claims.get("width")),
            height=whole(claims.get("height")),
            fps=claims.get("fps"),
            duration_s=claims.get("duration_s"),
            extra=self._extra(facts, captions, config),
        )

    def _index(self, location: Storage, texts: set[str], usable: set[str], max_chars: int) -> CaptionIndex:
        return CaptionIndex(location, texts, usable, max_chars)

    def _extra(self, facts: FileFacts, captions: list[Caption], config: TreeConfig) -> Mapping[str, object]:
        """What a kind of tree keeps of a file beside its captions."""
        return {}


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _overlaps(caption: Caption, frames: tuple[int, int] | None) -> bool:
    if frames is None or caption.first_frame is None or caption.last_frame is None:
        return True
    return caption.first_frame <= frames[1] and caption.last_frame >= frames[0]


def _no_location(kind: str) -> InputError:
    return InputError("source has no location", value=kind, next_step="give the source a `location` in the recipe")
