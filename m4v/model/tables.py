"""Index tables of the MM-DiM blocks: re-composed sequences and temporal pieces, cached per layout."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m4v.devices import upload
from m4v.model.layout import BatchLayout, Column, Indices, frame_types, per_layout
from m4v.model.scan import LAYER_ORDER, scan_order


class CompositionTable(NamedTuple):
    """The static half of MM-token re-composition for one scan path, over all columns of a batch row.

    Every column's sequence is padded to whole chunks, with a gap of at least `conv_width - 1` zeros behind it.
    `source` (N,): packed token behind each composed slot (0 for pads). `real` (N,): slots that are image or
    register. `slot` (packed tokens,): composed slot of each image token and register (0 for text).
    `first`, `second` (C, text slots): composed slots of the two text copies; `second` is None without it.
    `chunk_column` (N / chunk,): column of each chunk, on the CPU, so that no device must wait for it.
    `column` (N,) int32: column of each composed slot, None if there is one. `spans`: first slot and end of each.
    """

    source: Tensor
    real: Tensor
    slot: Tensor
    first: Tensor
    second: Tensor | None
    chunk_column: Tensor
    column: Tensor | None
    spans: tuple[tuple[int, int], ...]


@per_layout(1024)
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
    slots, copies = layout.text_slots, 2 if closing_text else 1
    visuals = visual_orders(layout, LAYER_ORDER[path % len(LAYER_ORDER)], scan, registers)
    slot = np.zeros(layout.text_tokens + sum(len(v) for v in visuals), np.int64)
    sources, firsts, seconds, begin = [], [], [], 0
    for visual in visuals:
        used = copies * slots + len(visual)
        length = -(-(used + gap) // chunk) * chunk
        source = np.full(length, -1, np.int64)
        source[slots : slots + len(visual)] = visual
        slot[visual] = begin + slots + np.arange(len(visual))
        sources.append(source)
        firsts.append(begin + np.arange(slots))
        seconds.append(begin + used - slots + np.arange(slots))
        begin += length
    return table_of(sources, slot, firsts, seconds if closing_text else None, chunk, device)


def table_of(
    sources: list[Indices],
    slot: Indices,
    firsts: list[Indices],
    seconds: list[Indices] | None,
    chunk: int,
    device: str,
) -> CompositionTable:
    """The table of columns that lie behind each other; `sources` has -1 where no packed token is behind a slot."""
    flat, ends = np.concatenate(sources), np.cumsum([len(source) for source in sources]).tolist()
    owner = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
    return CompositionTable(
        source=upload(torch.from_numpy(np.maximum(flat, 0)), device),
        real=upload(torch.from_numpy(flat >= 0), device),
        slot=upload(torch.from_numpy(slot), device),
        first=upload(torch.from_numpy(np.stack(firsts)), device),
        second=upload(torch.from_numpy(np.stack(seconds)), device) if seconds is not None else None,
        chunk_column=torch.from_numpy(owner[::chunk].copy()),
        column=upload(torch.from_numpy(owner.astype(np.int32)), device) if len(sources) > 1 else None,
        spans=tuple(zip([0, *ends[:-1]], ends, strict=True)),
    )


def visual_orders(
    layout: BatchLayout, letter: str, scan: Literal["serpentine", "raster"], registers: bool
) -> list[Indices]:
    """Packed indices of each column's registers and image tokens in scanning order. A column may have no clip."""
    image = layout.text_tokens
    register = image + layout.image_tokens
    orders = []
    for column in layout.columns:
        parts: list[Indices] = []
        for clip in column.clips:
            order = scan_order(letter, clip.height, clip.width, scan)
            for _ in range(clip.frames):
                if registers:
                    parts.append(np.array([register], np.int64))
                parts.append(image + order)
                image, register = image + len(order), register + 1
        orders.append(np.concatenate(parts) if parts else np.zeros(0, np.int64))
    return orders


@per_layout(1024)
def register_types(layout: BatchLayout, device: str) -> Tensor:
    """(frames of all columns, 3) one-hot type of each register, float32."""
    types = torch.from_numpy(np.concatenate([frame_types(c) for c in layout.columns]))
    return upload(torch.nn.functional.one_hot(types, 3).to(torch.float32), device)


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


@per_layout(1024)
def temporal_table(layout: BatchLayout, device: str, kept: tuple[tuple[int, int], ...] | None = None) -> TemporalTable:
    """Pieces of the lowest grid's size: one per history frame (area mean), factor^2 per noisy frame.

    The noisy frame is cut interleaved (space to depth), so place p of a piece is the image place p of the
    reduced frames; history goes back to its own size by nearest neighbour. `kept`: first frame and end of the part
    of each column that is there, when it is not all of it; image tokens are then counted in those alone.
    """
    pooled: dict[int, list[Indices]] = {}  # by number of averaged tokens
    where: list[tuple[int, int]] = []  # (that number, how many temporal tokens) in temporal order
    parts = kept or tuple((0, column.frames) for column in layout.columns)
    tokens = sum(sum(c.frame_tokens[first:last]) for c, (first, last) in zip(layout.columns, parts, strict=True))
    back, pieces, image, temporal = np.zeros(tokens, np.int64), [], 0, 0
    for column, (first, last) in zip(layout.columns, parts, strict=True):
        count = 0
        for cells, noisy in _cut_frames(column, image - sum(column.frame_tokens[:first]))[first:last]:
            sources = cells.reshape(-1, 1) if noisy else cells.T
            back[cells] = temporal + np.arange(sources.shape[0]).reshape(-1, cells.shape[1])
            pooled.setdefault(sources.shape[1], []).append(sources)
            where.append((sources.shape[1], len(sources)))
            temporal, count = temporal + len(sources), count + (len(cells) if noisy else 1)
            image += cells.size
        pieces.append(count)
    if not pooled:  # no frame is there
        pooled[1] = [np.zeros((0, 1), np.int64)]
    return TemporalTable(
        pools=tuple(upload(torch.from_numpy(np.concatenate(group)), device) for group in pooled.values()),
        order=upload(torch.from_numpy(_order_of(where, list(pooled))), device),
        back=upload(torch.from_numpy(back), device),
        pieces=tuple(pieces),
        places=tuple(c.lowest[0] * c.lowest[1] for c in layout.columns),
    )


def _cut_frames(column: Column, image: int) -> list[tuple[Indices, bool]]:
    """Per frame its image tokens as (piece, place), and whether it is noisy; `image` is the column's first token."""
    low_h, low_w = column.lowest
    frames = []
    for number, clip in enumerate(column.clips):
        factor, noisy = clip.height // low_h, number == len(column.clips) - 1
        for _ in range(clip.frames):
            grid = image + np.arange(clip.height * clip.width).reshape(low_h, factor, low_w, factor)
            frames.append((grid.transpose(1, 3, 0, 2).reshape(factor * factor, low_h * low_w), noisy))
            image += grid.size
    return frames


def _order_of(where: list[tuple[int, int]], groups: list[int]) -> Indices:
    """Row of each temporal token in the concatenated groups."""
    totals = {g: sum(n for group, n in where if group == g) for g in groups}
    offsets = dict(zip(groups, np.cumsum([0, *totals.values()])[:-1].tolist(), strict=True))
    rows = [np.zeros(0, np.int64)]
    for group, count in where:
        rows.append(offsets[group] + np.arange(count))
        offsets[group] += count
    return np.concatenate(rows)


@per_layout(1024)
def piece_mask(column: Column, device: str) -> Tensor:
    """(pieces, pieces) bool: a piece sees the pieces of its own and of earlier frames."""
    counts = [len(cells) if noisy else 1 for cells, noisy in _cut_frames(column, 0)]
    frame = np.repeat(np.arange(column.frames), counts)
    return upload(torch.from_numpy(frame[:, None] >= frame[None, :]), device)
