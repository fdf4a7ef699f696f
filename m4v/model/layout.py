"""Where every token of a batch of columns lies: frames, positions, rotations, time masks.

Everything depends on shapes alone, is computed once per layout with numpy and cached as tensors.

Packed order of one batch row: the text of column 0, 1, ..., then the image tokens of column 0, 1, ...
(clips oldest first, frames in time order, row-major), then, for MM-DiM blocks, one register per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Maker = TypeVar("Maker", bound=Callable[..., object])
_FORGET: list[Callable[[], None]] = []


def per_layout(kept: int) -> Callable[[Maker], Maker]:
    """Cache the tables of the last `kept` layouts; `forget_layouts` empties every such cache."""

    def cached(make: Maker) -> Maker:
        found = lru_cache(maxsize=kept)(make)
        _FORGET.append(found.cache_clear)
        return cast(Maker, found)

    return cached


def forget_layouts() -> None:
    """Let go of all cached tables. Training meets the same layouts again and again, a sampler a new one with every
    frame: at 768p each is about 10 MB."""
    for forget in _FORGET:
        forget()


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
    def frame_tokens(self) -> list[int]:
        """Tokens of each frame."""
        return [c.height * c.width for c in self.clips for _ in range(c.frames)]

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


@per_layout(1024)
def column_rows(lengths: tuple[int, ...], batch: int, device: str) -> Tensor:
    """(batch tokens,) row of a flattened (batch, columns, ...) that each token belongs to, column c having
    `lengths[c]` tokens."""
    of_token = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.arange(batch)[:, None] * len(lengths) + of_token
    return torch.from_numpy(rows.reshape(-1)).to(device)


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


@per_layout(1024)
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


@per_layout(1024)
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
