"""How frame-causal attention is cut into dense rectangles and a corner that needs a mask (numpy alone).

A token sees the text of its column and the frames that are not later than its own. So the queries of a few frames
that follow each other, a group, all see the text and every frame up to the first of the group: a dense rectangle of
scores, for the fastest kernel there is without a mask. What is left of a group, its later frames against each other,
and all that concerns text, whose pads differ from row to row, is the corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_PARTS = 8  # rectangles of one column; the kernels name each
SPLIT = 2048  # queries that one program sums up for a tile of text keys
ALIGNMENT = 4  # rows; float32 values of a segment begin at multiples of 16 bytes

Table = NDArray[np.int32]


class Group(NamedTuple):
    """Queries [first, end) of a column's image tokens; all of them see the image keys [0, dense)."""

    first: int
    end: int
    dense: int


class ColumnPlan(NamedTuple):
    """One column: where its text and image begin among the packed tokens, tokens of each frame, and groups.

    `place` is where the values per row (log-sum-exp) of its text begin, and `places` those of its groups, in rows.
    """

    text: int
    slots: int
    image: int
    frames: tuple[int, ...]
    groups: tuple[Group, ...]
    place: int
    places: tuple[int, ...]

    @property
    def parts(self) -> list[tuple[int, Group]]:
        """Groups with a rectangle, and the place of their values."""
        return [(place, g) for place, g in zip(self.places, self.groups, strict=True) if g.dense]

    @property
    def scores(self) -> tuple[int, int, int]:
        """Scores of one head: visible (pads count), in rectangles, and in the corner."""
        ends = np.cumsum(self.frames)
        seen = int(np.dot(self.frames, ends)) + int(ends[-1]) * self.slots + self.slots * (self.slots + self.frames[0])
        dense = sum((g.end - g.first) * g.dense for g in self.groups)
        return seen, dense, seen - dense


class FramePlan(NamedTuple):
    """All columns, and how many rows their values per row take."""

    columns: tuple[ColumnPlan, ...]
    rows: int


def group_frames(frames: Sequence[int], most_rows: int) -> tuple[Group, ...]:
    """Groups of a column with `frames` tokens per frame: frames of equal size that follow each other, `most_rows`
    tokens or a single frame. The first ones, up to `most_rows` of any size, have no rectangle: it would be small.

    Equal frames are cut at equal places in every column that begins with them, so that they share plans of cuDNN.
    """
    ends = np.concatenate([[0], np.cumsum(frames)]).tolist()
    groups: list[Group] = []
    begin = 0
    while begin < len(frames):
        end = begin + 1
        while end < len(frames) and ends[end + 1] - ends[begin] <= most_rows and (
            begin == 0 or frames[end] == frames[begin]
        ):  # fmt: skip
            end += 1
        alone = begin == 0 and ends[end] <= most_rows
        groups.append(Group(ends[begin], ends[end], 0 if alone else ends[begin + 1]))
        begin = end
    if sum(g.dense > 0 for g in groups) > MOST_PARTS:
        return group_frames(frames, 2 * max(most_rows, min(frames)))
    return tuple(groups)


@lru_cache(1024)
def frame_plan(frames: tuple[int, ...], columns: tuple[int, ...], slots: int, most_rows: int) -> FramePlan:
    """The plan of packed tokens [text of all columns, image of all columns]: `frames` are tokens of each frame, one
    column after the other, `columns` frames of each column."""
    plans: list[ColumnPlan] = []
    begin, image, rows = 0, len(columns) * slots, 0
    for number, count in enumerate(columns):
        own = frames[begin : begin + count]
        groups = group_frames(own, most_rows)
        lengths = [slots, *(g.end - g.first for g in groups)]
        places = (rows + np.concatenate([[0], np.cumsum([_aligned(n) for n in lengths])])).tolist()
        plans.append(ColumnPlan(number * slots, slots, image, own, groups, places[0], tuple(places[1:-1])))
        begin, image, rows = begin + count, image + sum(own), places[-1]
    return FramePlan(tuple(plans), rows)


def _aligned(rows: int) -> int:
    return -(-rows // ALIGNMENT) * ALIGNMENT


def frame_times(plan: FramePlan) -> Table:
    """(packed tokens,) number of the frame of each token in its column; text belongs to the first."""
    text = np.zeros(sum(c.slots for c in plan.columns), np.int32)
    return np.concatenate([text, *(np.repeat(np.arange(len(c.frames)), c.frames) for c in plan.columns)]).astype(
        np.int32
    )


def query_tiles(column: ColumnPlan, rows: int) -> Table:
    """(tiles, 9) of at most `rows` queries of one group, those with the most keys first: first query, queries, place
    and rows of the group's values, row in the group, number of the rectangle or -1, and the image keys of the corner:
    first, end of those that all queries see, end of those that any sees. Tokens are packed ones."""
    ends = np.cumsum(column.frames)
    first_end = column.image + int(ends[0])
    tiles = [
        [
            column.text + at,
            min(rows, column.slots - at),
            column.place,
            column.slots,
            at,
            -1,
            *[column.image] * 2,
            first_end,
        ]
        for at in range(0, column.slots, rows)
    ]
    part = 0
    for group, place in zip(column.groups, column.places, strict=True):
        number = -1
        if group.dense:
            number, part = part, part + 1
        for at in range(group.first, group.end, rows):
            count = min(rows, group.end - at)
            whole, some = (max(int(ends[np.searchsorted(ends, u, "right")]), group.dense) for u in (at, at + count - 1))
            own = [column.image + at, count, place, group.end - group.first, at - group.first, number]
            tiles.append(own + [column.image + u for u in (group.dense, whole, some)])
    tiles.sort(key=lambda tile: tile[6] - tile[8])
    return np.array(tiles, np.int32)


def key_tiles(column: ColumnPlan, keys: int) -> Table:
    """(tiles, 6) of at most `keys` image keys, those with the most queries first: first key, keys, and the queries of
    the corner: first, first of those that see all keys, end; and whether text sees any. Tokens are packed ones."""
    ends = np.cumsum(column.frames)
    starts = ends - column.frames
    tiles = []
    for group in column.groups:
        edge = group.dense or group.first
        for begin, end in ((group.first, edge), (edge, group.end)):
            for at in range(begin, end, keys):
                count = min(keys, end - at)
                low, whole = (int(starts[np.searchsorted(ends, u, "right")]) for u in (at, at + count - 1))
                if end <= group.dense:
                    low = whole = group.end  # the rectangle has them
                queries = [column.image + u for u in (low, whole, group.end)]
                tiles.append([column.image + at, count, *queries, int(at < column.frames[0])])
    tiles.sort(key=lambda tile: tile[2] - tile[4])
    return np.array(tiles, np.int32)


def text_tiles(column: ColumnPlan, keys: int) -> tuple[Table, int]:
    """(tiles, 5) of at most `keys` text keys and `SPLIT` queries: first key, keys, first query, end of the queries,
    number of the split; and how many splits there are. Tokens are packed ones."""
    end = column.image + sum(column.frames)
    splits = [(column.text, column.text + column.slots)]
    splits += [(at, min(at + SPLIT, end)) for at in range(column.image, end, SPLIT)]
    tiles = [
        [column.text + at, min(keys, column.slots - at), *queries, number]
        for number, queries in enumerate(splits)
        for at in range(0, column.slots, keys)
    ]
    return np.array(tiles, np.int32), len(splits)
