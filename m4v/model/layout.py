"""Where every token of a batch of columns lies: frames, positions, masks, scan order, temporal pieces.

All tables depend on shapes alone. They are computed once per layout with numpy and cached as tensors.

Packed order of one batch row: the text of column 0, 1, ..., then the image tokens of column 0, 1, ...
(clips oldest first, frames in time order, row-major), then, for MM-DiM blocks, one register per frame.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4v.model.scan import LAYER_ORDER, scan_order

Indices = NDArray[np.int64]


class Clip(NamedTuple):
    """Frames and token grid of one clip."""

    frames: int
    height: int
    width: int


class Column(NamedTuple):
    """One column: its stage (0 = lowest resolution) and its clips, oldest first; the last is the noisy one."""

    stage: int
    clips: tuple[Clip, ...]

    @property
    def tokens(self) -> int:
        return sum(c.frames * c.height * c.width for c in self.clips)

    @property
    def frames(self) -> int:
        return sum(c.frames for c in self.clips)

    @property
    def lowest(self) -> tuple[int, int]:
        """Token grid of the lowest resolution. Raises ValueError when the noisy clip's grid has no such level."""
        last, factor = self.clips[-1], 1 << self.stage
        if last.height % factor or last.width % factor:
            raise ValueError(
                f"a token grid of {last.height} x {last.width} cannot be stage {self.stage}: not divisible by {factor}"
            )
        return last.height // factor, last.width // factor

    def level(self, clip: Clip) -> int:
        """Resolution of a clip relative to the lowest: 0 low, 1 mid, 2 high (the type of its registers)."""
        height, width = self.lowest
        level = (clip.height // height).bit_length() - 1
        if (clip.height, clip.width) != (height << level, width << level):
            raise ValueError(f"clip of {clip.height} x {clip.width} tokens is no level above {height} x {width}")
        return level


class BatchLayout(NamedTuple):
    """The columns of a forward and how many text slots each has."""

    columns: tuple[Column, ...]
    text_slots: int

    @property
    def text_tokens(self) -> int:
        return len(self.columns) * self.text_slots

    @property
    def image_tokens(self) -> int:
        return sum(c.tokens for c in self.columns)

    @property
    def lengths(self) -> list[int]:
        return [c.tokens for c in self.columns]


def image_ids(column: Column) -> NDArray[np.float32]:
    """(tokens, 3) positions t, h, w.

    t counts latent frames of the column; h, w live on the noisy clip's grid, and a smaller clip gets linearly
    interpolated places without aligned corners (half size: 0.5, 2.5, ...).
    """
    last, rows, time = column.clips[-1], [], 0
    for clip in column.clips:
        h = (np.arange(clip.height) + 0.5) * (last.height / clip.height) - 0.5
        w = (np.arange(clip.width) + 0.5) * (last.width / clip.width) - 0.5
        t = np.arange(time, time + clip.frames)
        grid = np.stack(np.meshgrid(t, h, w, indexing="ij"), axis=-1)
        rows.append(grid.reshape(-1, 3))
        time += clip.frames
    return np.concatenate(rows).astype(np.float32)


def register_ids(column: Column) -> NDArray[np.float32]:
    """(frames, 3) positions of the registers: the frame's time, place zero."""
    ids = np.zeros((column.frames, 3), dtype=np.float32)
    ids[:, 0] = np.arange(column.frames)
    return ids


def frame_types(column: Column) -> Indices:
    """Resolution level of each frame."""
    return np.concatenate([np.full(c.frames, column.level(c), dtype=np.int64) for c in column.clips])


@lru_cache(maxsize=1024)
def rotary(
    layout: BatchLayout, axes: tuple[int, int, int], theta: float, with_registers: bool, device: str, double: bool
) -> Tensor:
    """(packed tokens, head size / 2) unit complex numbers of the rotary angles, which are computed in float64."""
    ids = [np.zeros((layout.text_tokens, 3), np.float32), *(image_ids(c) for c in layout.columns)]
    if with_registers:
        ids += [register_ids(c) for c in layout.columns]
    positions = np.concatenate(ids).astype(np.float64)
    angles = [
        positions[:, axis, None] * theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        for axis, size in enumerate(axes)
        if size
    ]
    angle = torch.from_numpy(np.concatenate(angles, axis=1))
    turn = torch.polar(torch.ones_like(angle), angle)
    return turn.to(device, torch.complex128 if double else torch.complex64)


@lru_cache(maxsize=1024)
def _times(column: Column, text_slots: int, device: str) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(text_slots, np.float32), image_ids(column)[:, 0]])).to(device)


def frame_mask(column: Column, text_slots: int, causal: bool, device: str) -> Tensor | None:
    """(L, L) bool over [text, image] of a column: who may see whom by time; None when all may.

    Text has t = 0, so it never sees a later frame (PyramidFlow's temporal causal mask).
    """
    if not causal or column.frames == 1:
        return None
    t = _times(column, text_slots, device)  # the square is not cached: at full size it is 240 MB
    return t[:, None] >= t[None, :]


class CompositionTable(NamedTuple):
    """The static half of MM-token re-composition for one scan path, over all columns of a batch row.

    Every column's sequence is padded to whole chunks, with a gap of at least `conv_width - 1` zeros behind it.
    `source` (N,): packed token behind each composed slot (0 for pads). `real` (N,): slots that are image or
    register. `slot` (packed tokens,): composed slot of each image token and register (0 for text).
    `first`, `second` (C, text slots): composed slots of the two text copies; `second` is None without it.
    `chunk_column` (N / chunk,): column of each chunk.
    """

    source: Tensor
    real: Tensor
    slot: Tensor
    first: Tensor
    second: Tensor | None
    chunk_column: Tensor


@lru_cache(maxsize=1024)
def composition_table(
    layout: BatchLayout,
    path: int,
    scan: Literal["serpentine", "raster"],
    registers: bool,
    closing_text: bool,
    chunk: int,
    gap: int,
    device: str,
) -> CompositionTable:
    """[text, (register, frame in scan order) ..., text] of every column, each column padded to whole chunks."""
    slots, letter = layout.text_slots, LAYER_ORDER[path % len(LAYER_ORDER)]
    image = layout.text_tokens
    register = image + layout.image_tokens
    extent = register + (sum(c.frames for c in layout.columns) if registers else 0)
    source: list[Indices] = []
    firsts, seconds, chunk_column, begin = [], [], [], 0
    slot = np.zeros(extent, np.int64)
    for number, column in enumerate(layout.columns):
        visual = _visual_order(column, letter, scan, image, register if registers else None)
        firsts.append(begin + np.arange(slots))
        slot[visual] = begin + slots + np.arange(len(visual))
        used = slots + len(visual)
        if closing_text:
            seconds.append(begin + used + np.arange(slots))
            used += slots
        length = -(-(used + gap) // chunk) * chunk
        body = np.full(length, -1, np.int64)
        body[slots : slots + len(visual)] = visual
        source.append(body)
        chunk_column += [number] * (length // chunk)
        begin += length
        image += column.tokens
        register += column.frames
    flat = np.concatenate(source)
    return CompositionTable(
        source=torch.from_numpy(np.maximum(flat, 0)).to(device),
        real=torch.from_numpy(flat >= 0).to(device),
        slot=torch.from_numpy(slot).to(device),
        first=torch.from_numpy(np.stack(firsts)).to(device),
        second=torch.from_numpy(np.stack(seconds)).to(device) if closing_text else None,
        chunk_column=torch.tensor(chunk_column, device=device),
    )


def _visual_order(
    column: Column, letter: str, scan: Literal["serpentine", "raster"], image: int, register: int | None
) -> Indices:
    """Packed indices of a column's registers and image tokens in scanning order."""
    parts, frame = [], 0
    for clip in column.clips:
        order = scan_order(letter, clip.height, clip.width, scan)
        for _ in range(clip.frames):
            if register is not None:
                parts.append(np.array([register + frame], np.int64))
            parts.append(image + order)
            image += clip.height * clip.width
            frame += 1
    return np.concatenate(parts)


@lru_cache(maxsize=1024)
def register_types(layout: BatchLayout, device: str) -> Tensor:
    """(frames of all columns, 3) one-hot type of each register, float32."""
    types = torch.from_numpy(np.concatenate([frame_types(c) for c in layout.columns]))
    return torch.nn.functional.one_hot(types, 3).to(device, torch.float32)


class TemporalTable(NamedTuple):
    """Index tables of the temporal branch over all columns of a batch row (image tokens only).

    `pools`: for each pooling factor a (tokens, factor^2) table of the image tokens that are averaged; their
    results, one factor after the other, are reordered by `order` into pieces of `places` tokens, column by
    column. `pieces`: per column how many. `back` (image tokens,): which temporal token each image token reads.
    """

    pools: tuple[Tensor, ...]
    order: Tensor
    back: Tensor
    pieces: tuple[int, ...]
    places: tuple[int, ...]


@lru_cache(maxsize=1024)
def temporal_table(layout: BatchLayout, device: str) -> TemporalTable:
    """Pieces of the lowest grid's size: one per history frame (area mean), factor^2 per noisy frame.

    The noisy frame is cut interleaved (space to depth), so place p of a piece is the image place p of the
    reduced frames; history goes back to its own size by nearest neighbour.
    """
    pooled: dict[int, list[Indices]] = {}
    where: list[tuple[int, int, int]] = []  # (factor, begin, count) of the tokens in temporal order
    back = np.zeros(layout.image_tokens, np.int64)
    pieces, image, temporal = [], 0, 0
    for column in layout.columns:
        low_h, low_w = column.lowest
        places, count, time = low_h * low_w, 0, 0
        noisy_from = column.frames - column.clips[-1].frames
        for clip in column.clips:
            factor = clip.height // low_h
            for _ in range(clip.frames):
                # (piece row, piece column, place): the image tokens of this frame, interleaved.
                cells = image + np.arange(clip.height * clip.width).reshape(low_h, factor, low_w, factor)
                cut = cells.transpose(1, 3, 0, 2).reshape(factor * factor, places)
                if time >= noisy_from:
                    sources, new = cut.reshape(-1, 1), factor * factor
                    back[cut.reshape(-1)] = temporal + np.arange(cut.size)
                else:
                    sources, new = cut.T, 1
                    back[cut] = temporal + np.arange(places)
                group = pooled.setdefault(sources.shape[1], [])
                where.append((sources.shape[1], sum(len(g) for g in group), len(sources)))
                group.append(sources)
                image, temporal, count, time = image + cut.size, temporal + len(sources), count + new, time + 1
        pieces.append(count)
    offset, offsets = 0, {}
    for width, group in pooled.items():
        offsets[width] = offset
        offset += sum(len(g) for g in group)
    order = np.concatenate([offsets[w] + np.arange(b, b + n) for w, b, n in where])
    return TemporalTable(
        pools=tuple(torch.from_numpy(np.concatenate(g)).to(device) for g in pooled.values()),
        order=torch.from_numpy(order).to(device),
        back=torch.from_numpy(back).to(device),
        pieces=tuple(pieces),
        places=tuple(c.lowest[0] * c.lowest[1] for c in layout.columns),
    )


@lru_cache(maxsize=1024)
def piece_mask(column: Column, device: str) -> Tensor:
    """(pieces, pieces) bool: a piece sees the pieces of its own and of earlier frames."""
    noisy_from = column.frames - column.clips[-1].frames
    per_noisy = 1 << (2 * column.level(column.clips[-1]))
    counts = [1 if f < noisy_from else per_noisy for f in range(column.frames)]
    frame = np.repeat(np.arange(column.frames), counts)
    return torch.from_numpy(frame[:, None] >= frame[None, :]).to(device)
