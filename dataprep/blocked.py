"""Clips that may not come in again: what takedowns withdrew, and how a file or a new cut is recognised as one of them.

A list reaches the `curate` stage as an attached file whose digest is in the stage key. Recognised are: a collection or
a file that was taken down as a whole; the clip itself or an overlapping span of its file, by name or by bytes; equal
decoded pictures; and, for filmed material, near pictures by the rule of near copies (most sampled frames of one have a
close frame in the other), so a re-encoded, scaled or shortened copy does not come back under a new name.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataprep.curation.table import Clip
from dataprep.dedup.hash_index import HashIndex
from dataprep.signals.phash import distance, from_text
from m4v.core.canonical import canonical_json
from m4v.core.config import FrozenModel, parse
from m4v.core.ids import clip_id
from m4v.core.stage import StageContext

ATTACHMENT = "blocked"
STEP, FILE_STEP = "blocked", "blocked_file"  # of quarantine rows
BITS = 6  # of 64 that close frames may differ by
SHARE = 0.6  # of the sampled frames that must have a close one


class BlockedClip(FrozenModel):
    """A clip that was taken down. `phash`: words of its sampled frames, `content`: digest of its decoded pictures;
    empty where they were not known. Times are microseconds, half-open; 0, 0 for an image."""

    clip_id: str
    source: str
    source_id: str
    source_digest: str
    start_us: int
    end_us: int
    media: str
    phash: str = ""
    content: str = ""
    drawn: bool = False


class BlockedCase(FrozenModel):
    """What one takedown blocks: its clips, and whole collections, files (source, source id) and file digests."""

    takedown_id: str
    sources: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    digests: tuple[str, ...] = ()
    phashes: tuple[str, ...] = ()  # pictures named by their hashes alone, words joined by dashes
    phash_bits: int = 0  # that a frame may differ by from such a word; half of the words must be met
    clips: tuple[BlockedClip, ...] = ()


class BlockList(FrozenModel):
    """All takedowns in force, oldest first."""

    cases: tuple[BlockedCase, ...] = ()

    def to_bytes(self) -> bytes:
        return canonical_json(self.canonical())


@dataclass(frozen=True)
class Block:
    """Why something may not come in."""

    takedown_id: str
    by: str

    @property
    def detail(self) -> str:
        return f"takedown {self.takedown_id}: {self.by}"


def read_block_list(context: StageContext) -> BlockList | None:
    """The list that was attached to a stage's request; None when nothing is blocked."""
    path = context.request.attachments.get(ATTACHMENT)
    return None if path is None else parse(BlockList, json.loads(Path(path).read_bytes()), "block list")


class Blocked:
    """Look-ups in a block list."""

    def __init__(self, blocked: BlockList) -> None:
        self._sources: dict[str, str] = {}
        self._files: dict[tuple[str, str], str] = {}
        self._digests: dict[str, str] = {}
        self._spans: dict[tuple[str, ...], list[tuple[BlockedClip, str]]] = defaultdict(list)
        self._contents: dict[str, str] = {}
        self._asked: list[tuple[NDArray[np.uint64], int, Block]] = []
        prints: list[tuple[BlockedClip, str]] = []
        for case in blocked.cases:
            name = case.takedown_id
            self._sources |= dict.fromkeys(case.sources, name)
            self._files |= dict.fromkeys(case.files, name)
            self._digests |= dict.fromkeys(case.digests, name)
            self._asked += [(_words(text), case.phash_bits, Block(name, f"pictures {text}")) for text in case.phashes]
            for clip in case.clips:
                self._spans[clip.source, clip.source_id].append((clip, name))
                self._spans[clip.source_digest,].append((clip, name))
                if clip.content:
                    self._contents[clip.content] = name
                if clip.phash and not clip.drawn:
                    prints.append((clip, name))
        self._pictures = _Pictures(prints)

    def file(self, source: str, source_id: str, digest: str, media: str) -> Block | None:
        """Whether a whole file is blocked, known before it is read; an image is its file."""
        for found, by in (
            (self._sources.get(source), f"collection {source}"),
            (self._files.get((source, source_id)), f"file {source}/{source_id}"),
            (self._digests.get(digest), f"bytes of file {digest[:12]}"),
        ):
            if found is not None:
                return Block(found, by)
        if media != "image":
            return None
        spans = [*self._spans.get((source, source_id), ()), *self._spans.get((digest,), ())]
        return next((Block(name, f"clip {clip.clip_id}") for clip, name in spans if clip.media == "image"), None)

    def span(self, source: str, source_id: str, digest: str, start_us: int, end_us: int) -> Block | None:
        """Whether a span of a file, by its name or its bytes, is a blocked clip or overlaps one."""
        spans = (*self._spans.get((source, source_id), ()), *(self._spans.get((digest,), ()) if digest else ()))
        for blocked, name in spans:
            if _overlap((start_us, end_us), (blocked.start_us, blocked.end_us)):
                same = blocked.clip_id == clip_id(source, source_id, start_us, end_us)
                return Block(name, f"clip {blocked.clip_id}" + ("" if same else ", overlapped"))
        return None

    def clip(self, clip: Clip) -> Block | None:
        """Whether a candidate is a blocked clip, a part of it, or a copy."""
        found_span = self.span(clip.source, clip.file.source_id, clip.file.sha256, clip.start_us, clip.end_us)
        if found_span is not None:
            return found_span
        if (found := self._contents.get(clip.content)) is not None:
            return Block(found, "equal pictures")
        for words, bits, block in self._asked:
            close = distance(words[:, None], clip.dense[clip.dense != 0][None, :]) <= bits
            if len(words) and 2 * np.count_nonzero(close.any(axis=1)) >= len(words):
                return block
        return None if clip.drawn else self._pictures.near(clip)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one == other or (one[0] < other[1] and other[0] < one[1])


def _words(text: str) -> NDArray[np.uint64]:
    """Hashes with structure; 0 stands for a plain picture, which is like no other."""
    words = from_text(text)
    return np.asarray(words[words != 0], dtype=np.uint64)


class _Pictures:
    """Perceptual hashes of blocked clips, one list for all of them."""

    def __init__(self, prints: list[tuple[BlockedClip, str]]) -> None:
        self._prints = prints
        words = [_words(clip.phash) for clip, _ in prints]
        self._needed = np.array([SHARE * len(w) for w in words])
        self._owner = np.repeat(np.arange(len(words)), [len(w) for w in words])
        self._words = np.concatenate([np.zeros(0, np.uint64), *words]).astype(np.uint64)
        self._index = HashIndex(self._words) if len(self._words) else None

    def near(self, clip: Clip) -> Block | None:
        """The first blocked clip of which most frames are in the candidate, or that has most of the candidate's."""
        if self._index is None:
            return None
        hit = self._held_by(clip.dense) | self._holding(clip.sampled)
        for place in np.flatnonzero(hit).tolist():
            blocked, name = self._prints[place]
            # Other parts of the very file are what their own spans say; a still is no copy of a film.
            if blocked.source_digest != clip.file.sha256 and (blocked.media == "video") == clip.is_video:
                return Block(name, f"pictures like those of clip {blocked.clip_id}")
        return None

    def _held_by(self, dense: NDArray[np.uint64]) -> NDArray[np.bool_]:
        assert self._index is not None
        _, places = self._index.within(dense[dense != 0], BITS)
        matches = np.bincount(self._owner[np.unique(places)], minlength=len(self._prints))
        return np.asarray((matches > 0) & (matches >= self._needed))

    def _holding(self, sampled: NDArray[np.uint64]) -> NDArray[np.bool_]:
        assert self._index is not None
        asked = sampled[sampled != 0]
        if 2 * len(asked) < len(sampled) or not len(asked):  # a fade decides nothing
            return np.zeros(len(self._prints), np.bool_)
        frames, places = self._index.within(asked, BITS)
        both = np.unique(np.stack([frames, self._owner[places]]), axis=1)
        matches = np.bincount(both[1], minlength=len(self._prints))
        return np.asarray(matches >= SHARE * len(asked))
