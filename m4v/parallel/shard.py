"""One rank's part of a forward: which tokens it has, and how they meet those of the other ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from m4v.model.layout import BatchLayout, Column, Indices, per_layout
from m4v.model.tables import TemporalTable, temporal_table
from m4v.parallel.cut import Frames, cut_frames, part_of, rows_of
from m4v.parallel.group import SequenceGroup
from m4v.parallel.heads import TokenExchange


@dataclass(frozen=True)
class Shard:
    """`whole` is the layout of the forward, `cut[q]` the frames of rank q in each column, `parts[q]` its columns.

    The first rank owns the text. `local` is what this rank has: its columns, and text slots on the first rank alone.
    """

    group: SequenceGroup
    whole: BatchLayout
    cut: tuple[tuple[Frames, ...], ...]
    parts: tuple[tuple[Column, ...], ...]
    local: BatchLayout
    device: str

    @cached_property
    def frames(self) -> Tensor:
        """Own frames, counted in all frames of all columns."""
        return self._tensor(np.concatenate(_frame_rows(self.whole, self.cut[self.group.rank])))

    @cached_property
    def image(self) -> Tensor:
        """Own image tokens, counted in all image tokens."""
        return self._tensor(rows_of(self.whole, self.cut[self.group.rank]))

    @cached_property
    def tokens(self) -> TokenExchange:
        """Meeting of all text and image tokens, in packed order."""
        text = np.arange(self.whole.text_tokens)
        rows = [self.whole.text_tokens + rows_of(self.whole, cut) for cut in self.cut]
        return TokenExchange(self.group, [np.concatenate([text, rows[0]]), *rows[1:]], self.device)

    @cached_property
    def video(self) -> TokenExchange:
        """Meeting of all image tokens."""
        return TokenExchange(self.group, [rows_of(self.whole, cut) for cut in self.cut], self.device)

    @cached_property
    def temporal(self) -> TokenExchange:
        """Meeting of all tokens of the temporal branch."""
        return TokenExchange(self.group, _temporal_rows(self.whole, self.cut), self.device)

    @cached_property
    def noisy(self) -> TokenExchange:
        """Meeting of the tokens of each column's last clip."""
        return TokenExchange(self.group, [self._noisy_rows(cut) for cut in self.cut], self.device)

    @property
    def noisy_lengths(self) -> list[int]:
        """Own tokens of each column's last clip."""
        return [_last_clip(column, frames)[1] for column, frames in zip(self.whole.columns, self._own, strict=True)]

    @property
    def temporal_table(self) -> TemporalTable:
        return temporal_table(self.whole, self.device, self._own)

    @property
    def _own(self) -> tuple[Frames, ...]:
        return self.cut[self.group.rank]

    def select_turn(self, turn: Tensor, registers: bool, scanned_text: bool) -> Tensor:
        """Own rows of the rotations of [text, image, registers]; with `scanned_text` also those of the text that this
        rank only scans."""
        text = self.whole.text_tokens if scanned_text or self.group.rank == 0 else 0
        parts = [turn[:text], turn.index_select(0, self.whole.text_tokens + self.image)]
        if registers:
            parts.append(turn.index_select(0, self.whole.text_tokens + self.whole.image_tokens + self.frames))
        return torch.cat(parts)

    def _noisy_rows(self, cut: tuple[Frames, ...]) -> Indices:
        """Own tokens of the last clips, counted in those of all columns."""
        rows, before = [np.zeros(0, np.int64)], 0
        for column, frames in zip(self.whole.columns, cut, strict=True):
            first, count = _last_clip(column, frames)
            rows.append(before + first + np.arange(count))
            clip = column.clips[-1]
            before += clip.frames * clip.height * clip.width
        return np.concatenate(rows)

    def _tensor(self, rows: Indices) -> Tensor:
        return torch.from_numpy(rows).to(self.device)


@per_layout(1024)
def shard_of(layout: BatchLayout, group: SequenceGroup, device: str) -> Shard:
    """This rank's part; all ranks cut alike."""
    cut = cut_frames(layout, group.size)
    parts = tuple(
        tuple(part_of(column, frames) for column, frames in zip(layout.columns, of_rank, strict=True))
        for of_rank in cut
    )
    local = BatchLayout(parts[group.rank], layout.text_slots if group.rank == 0 else 0)
    return Shard(group, layout, cut, parts, local, device)


def _last_clip(column: Column, frames: Frames) -> tuple[int, int]:
    """First token in the last clip and number of its tokens among these frames of a column."""
    clip = column.clips[-1]
    before = column.frames - clip.frames
    first, last = (max(frame - before, 0) for frame in frames)
    return first * clip.height * clip.width, (last - first) * clip.height * clip.width


def _frame_rows(layout: BatchLayout, cut: tuple[Frames, ...]) -> list[Indices]:
    rows, before = [np.zeros(0, np.int64)], 0
    for column, (first, last) in zip(layout.columns, cut, strict=True):
        rows.append(before + np.arange(first, last))
        before += column.frames
    return rows


def _temporal_rows(layout: BatchLayout, cut: tuple[tuple[Frames, ...], ...]) -> list[Indices]:
    """Per rank its temporal tokens, counted in all, column after column in order of frames."""
    found: list[list[Indices]] = [[np.zeros(0, np.int64)] for _ in cut]
    before = 0
    for number, column in enumerate(layout.columns):
        for rows, of_rank in zip(found, cut, strict=True):
            first, last = (_temporal_tokens(column, frame) for frame in of_rank[number])
            rows.append(before + np.arange(first, last))
        before += _temporal_tokens(column, column.frames)
    return [np.concatenate(rows) for rows in found]


def _temporal_tokens(column: Column, frames: int) -> int:
    """Tokens of the temporal branch that a column's first so many frames have: a piece of the lowest size for each
    frame of the history, all tokens of a noisy frame."""
    clip = column.clips[-1]
    history = column.frames - clip.frames
    height, width = column.lowest
    return min(frames, history) * height * width + max(frames - history, 0) * clip.height * clip.width
