"""Which frames of each column a rank gets: contiguous ones, cut at frame boundaries, so that tokens are even."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from m4v.model.layout import BatchLayout, Clip, Column, Indices

Frames = tuple[int, int]  # first and end


@lru_cache(maxsize=1024)
def cut_frames(layout: BatchLayout, ranks: int) -> tuple[tuple[Frames, ...], ...]:
    """[rank][column]: its frames, possibly none. Column after column, the largest first, the ranks are filled in order
    of time up to the least limit that holds the column, which no other cut can beat for that column.

    The first rank owns the text and the last scans its closing copy, which both weighs like image tokens.
    """
    load = [0] * ranks
    load[0] = load[-1] = layout.text_tokens
    found: dict[int, tuple[Frames, ...]] = {}
    for number in sorted(range(len(layout.columns)), key=lambda c: -layout.columns[c].tokens):
        sizes = layout.columns[number].frame_tokens
        low, high = 0, sum(sizes) + max(load)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _fill(sizes, load, middle)[-1][1] == len(sizes) else (middle + 1, high)
        found[number] = _fill(sizes, load, low)
        load = [have + sum(sizes[a:b]) for have, (a, b) in zip(load, found[number], strict=True)]
    return tuple(tuple(found[c][rank] for c in range(len(layout.columns))) for rank in range(ranks))


def _fill(sizes: list[int], load: list[int], limit: int) -> tuple[Frames, ...]:
    """Frames of each rank when it takes what fits below the limit; the last one's end tells whether all found room."""
    cuts, frame = [], 0
    for have in load:
        first = frame
        while frame < len(sizes) and have + sizes[frame] <= limit:
            have, frame = have + sizes[frame], frame + 1
        cuts.append((first, frame))
    return tuple(cuts)


def part_of(column: Column, frames: Frames) -> Column:
    """The column with those frames alone. It says no more what is noisy: levels and positions are the whole one's."""
    clips, before = [], 0
    for clip in column.clips:
        kept = min(frames[1], before + clip.frames) - max(frames[0], before)
        if kept > 0:
            clips.append(Clip(kept, clip.height, clip.width))
        before += clip.frames
    return Column(column.stage, tuple(clips))


def rows_of(layout: BatchLayout, cut: tuple[Frames, ...]) -> Indices:
    """Image tokens of these frames, counted in all image tokens."""
    rows, image = [np.zeros(0, np.int64)], 0
    for column, (first, last) in zip(layout.columns, cut, strict=True):
        sizes = column.frame_tokens
        rows.append(image + np.arange(sum(sizes[:first]), sum(sizes[:last])))
        image += column.tokens
    return np.concatenate(rows)
