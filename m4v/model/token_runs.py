"""Which column every packed token belongs to, as runs cut into tiles: the tables of the kernels that act by column."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m4v.devices import upload
from m4v.model.layout import BatchLayout, frame_types, per_layout
from m4v.model.tables import piece_mask, temporal_table

TILE = 16  # rows; that of `m4v.kernels.column_sums`, which needs Triton


class TokenRuns(NamedTuple):
    """`tiles` (tiles, 3): first row, end and column of each, no more than `TILE` rows of one column. `order` (tiles,):
    the tiles of column 0, 1, ... and `bounds` (columns + 1,): where each column's begin in it; all int32.
    `rows`: how many there are, registers included, whose types count as columns behind the real ones."""

    tiles: Tensor
    order: Tensor
    bounds: Tensor
    rows: int


@per_layout(1024)
def token_runs(lengths: tuple[tuple[int, int], ...], columns: int, device: str) -> TokenRuns:
    """The tables of runs (tokens, column) that lie behind each other."""
    parts, begin = [np.zeros((0, 3), np.int64)], 0
    for length, column in lengths:
        end = begin + length
        first = np.arange(begin, end, TILE)
        parts.append(np.stack([first, np.minimum(first + TILE, end), np.full_like(first, column)], axis=1))
        begin = end
    table = np.concatenate(parts)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(table[:, 2], minlength=columns))])
    order = np.argsort(table[:, 2], kind="stable")
    made = [upload(torch.from_numpy(u.astype(np.int32)), device) for u in (table, order, bounds)]
    return TokenRuns(made[0], made[1], made[2], begin)


def image_runs(layout: BatchLayout, device: str) -> TokenRuns:
    """Image tokens alone."""
    return token_runs(tuple((n, c) for c, n in enumerate(layout.lengths)), len(layout.columns), device)


def text_runs(layout: BatchLayout, device: str) -> TokenRuns:
    """Text tokens alone."""
    count = len(layout.columns)
    return token_runs(tuple((layout.text_slots, c) for c in range(count)), count, device)


def packed_runs(layout: BatchLayout, device: str, register_types: int = 0) -> TokenRuns:
    """[text of all columns, image of all columns], then one register per frame when there are `register_types`."""
    count = len(layout.columns)
    runs = [(layout.text_slots, c) for c in range(count)] + [(n, c) for c, n in enumerate(layout.lengths)]
    if register_types:
        runs += _register_runs(layout)
    return token_runs(tuple(runs), count + register_types, device)


@per_layout(1024)
def _register_runs(layout: BatchLayout) -> list[tuple[int, int]]:
    types = np.concatenate([frame_types(c) for c in layout.columns])
    ends = np.concatenate([np.flatnonzero(np.diff(types)) + 1, [len(types)]])
    begins = np.concatenate([[0], ends[:-1]])
    return [(int(e - b), len(layout.columns) + int(types[b])) for b, e in zip(begins, ends, strict=True)]


class PieceLists(NamedTuple):
    """Which image tokens each token of the temporal branch stands for, in ascending order: `members[bounds[t]:bounds[t
    + 1]]`. `back`: the temporal token of each image token. All int32."""

    bounds: Tensor
    members: Tensor
    back: Tensor


@per_layout(1024)
def piece_lists(layout: BatchLayout, device: str) -> PieceLists:
    """`TemporalTable.back` and its inverse: a token of the branch is the mean of those that read it."""
    table = temporal_table(layout, "cpu")
    counts = torch.bincount(table.back, minlength=table.order.shape[0])
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    lists = [upload(u.to(torch.int32), device) for u in (bounds, torch.argsort(table.back, stable=True), table.back)]
    return PieceLists(lists[0], lists[1], lists[2])


class PieceTable(NamedTuple):
    """What the attention between the pieces of all columns depends on besides its tensors: see `attend_pieces`."""

    seen: Tensor
    table: Tensor
    pieces: list[int]
    places: list[int]


@per_layout(1024)
def piece_table(layout: BatchLayout, device: str) -> PieceTable:
    """The pieces of the columns one behind the other, and `piece_mask` of each."""
    found = temporal_table(layout, "cpu")
    rows, scores, fields = 0, 0, []
    for pieces, places in zip(found.pieces, found.places, strict=True):
        fields.append([rows, pieces, places, scores])
        rows, scores = rows + pieces * places, scores + pieces * pieces
    seen = torch.cat([piece_mask(column, "cpu").flatten() for column in layout.columns])
    table = torch.tensor(fields, dtype=torch.int32)
    return PieceTable(upload(seen, device), upload(table, device), list(found.pieces), list(found.places))
