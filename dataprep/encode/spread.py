"""A few of many encoded clips, whatever order they come in: videos before images, from every source in turn."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from dataprep.encode.dataset import EncodedClip
from dataprep.encode.jobs import ClipMedia


@dataclass(frozen=True)
class Done:
    """A clip whose items are in the store, and where its pixels come from."""

    encoded: EncodedClip
    media: ClipMedia


class Spread:
    """Takes any number of clips and holds `count` of each source and kind of media at most."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._groups: dict[tuple[str, str], list[Done]] = {}

    def add(self, done: Done) -> None:
        clip = done.encoded.clip
        group = self._groups.setdefault((clip.media, clip.source), [])
        bisect.insort(group, done, key=_clip_id)
        del group[self._count :]

    def chosen(self) -> list[Done]:
        """`count` clips, or all where there are fewer: those of the smallest ids of each source."""
        ranked = [
            (media != "video", turn, source, _clip_id(done), done)
            for (media, source), group in self._groups.items()
            for turn, done in enumerate(group)
        ]
        return [entry[-1] for entry in sorted(ranked, key=lambda r: r[:-1])[: self._count]]


def _clip_id(done: Done) -> str:
    return done.encoded.clip.clip_id
