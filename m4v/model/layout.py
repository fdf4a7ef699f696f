"""Where every token of a batch of columns lies: frames, positions, rotations, time masks.

Everything depends on shapes alone, is computed once per layout with numpy and cached as tensors.

Packed order of one batch row: the text of column 0, 1, ..., then the image tokens of column 0, 1, ...
(clips oldest first, frames in time order, row-major), then, for MM-DiM blocks, one register per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4v.devices import upload

Indices = NDArray[np.int64]
Maker = TypeVar("Maker", bound=Callable[..., object])
_FORGET: list[Callable[[], None]] = []
_AGE = [0]


def per_layout(kept: int) -> Callable[[Maker], Maker]:
    """Cache the tables of the last `kept` layouts; `forget_layouts` empties every such cache. To torch.compile they
    are constants: traced, their making would be a part of every call."""

    def cached(make: Maker) -> Maker:
        found = lru_cache(maxsize=kept)(make)
        _FORGET.append(found.cache_clear)

        @wraps(make)
        def tables(*given: object, **named: object) -> object:
            return found(*given, **named)

        tables.cache_info = found.cache_info  # type: ignore[attr-defined]
        # What torch.compiler.assume_constant_result sets: calling it would import the compiler into every process.
        tables._dynamo_marked_constant = True  # type: ignore[attr-defined]
        return cast(Maker, tables)

    return cached


def forget_layouts() -> None:
    """Let go of all cached tables. Training meets the same layouts again and again, a sampler a new one with every
    frame: at 768p each is about 10 MB."""
    _AGE[0] += 1
    for forget in _FORGET:
        forget()


def layouts_age() -> int:
    """How often tables were let go of: whoever holds on to their places in memory shall notice."""
    return _AGE[0]


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
    return upload(torch.from_numpy(rows.reshape(-1)), device)


def clip_places(column: Column) -> list[tuple[NDArray[np.float32], ...]]:
    """Positions t, h, w of each clip's frames, rows and columns.

    t counts latent frames of the column; h, w live on the noisy clip's grid, and a smaller clip gets linearly
    interpolated places without aligned corners (half size: 0.5, 2.5, ...).
    """
    last, found, time = column.clips[-1], [], 0
    for clip in column.clips:
        t = np.arange(time, time + clip.frames)
        h = (np.arange(clip.height) + 0.5) * (last.height / clip.height) - 0.5
        w = (np.arange(clip.width) + 0.5) * (last.width / clip.width) - 0.5
        found.append(tuple(places.astype(np.float32) for places in (t, h, w)))
        time += clip.frames
    return found


def image_ids(column: Column) -> NDArray[np.float32]:
    """(tokens, 3) positions t, h, w of the tokens (see `clip_places`)."""
    grids = [np.stack(np.meshgrid(*places, indexing="ij"), axis=-1) for places in clip_places(column)]
    return np.concatenate([grid.reshape(-1, 3) for grid in grids])


def frame_types(column: Column) -> Indices:
    """Resolution level of each frame."""
    return np.concatenate([np.full(c.frames, column.level(c), dtype=np.int64) for c in column.clips])


@per_layout(1024)
def rotary(
    layout: BatchLayout, axes: tuple[int, int, int], theta: float, with_registers: bool, device: str, double: bool
) -> Tensor:
    """(packed tokens, head size / 2) unit complex numbers of the rotary angles, which are computed in float64.
    Registers have their frame's time and place zero.

    A token's row is three parts, one for each axis, and an axis has few positions: their numbers are computed on the
    CPU and put together on the device. A sampler needs the next table every few steps, and all at once they would
    take longer than some of its steps.
    """
    clips = [places for column in layout.columns for places in clip_places(column)]
    parts = []  # per axis: the turns of place zero, then those of each clip's places
    for axis, channels in enumerate(axes):
        places = [np.zeros(1, np.float32), *(clip[axis] for clip in clips)]
        frequency = theta ** (-np.arange(0, channels, 2, dtype=np.float64) / max(channels, 1))
        angle = torch.from_numpy(np.concatenate(places).astype(np.float64)[:, None] * frequency)
        turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128 if double else torch.complex64)
        parts.append(upload(turn, device).split([len(u) for u in places]))
    (_, *times), (top, *heights), (left, *widths) = parts
    rows = [torch.cat([part[0] for part in parts], dim=-1).expand(layout.text_tokens, -1)]
    for t, h, w in zip(times, heights, widths, strict=True):
        grid = (len(t), len(h), len(w), -1)
        turns = torch.cat([t[:, None, None].expand(grid), h[:, None].expand(grid), w.expand(grid)], dim=-1)
        rows.append(turns.flatten(0, 2))
    if with_registers:
        rows += [torch.cat([t, top.expand(len(t), -1), left.expand(len(t), -1)], dim=-1) for t in times]
    return torch.cat(rows)


@per_layout(1024)
def _times(column: Column, text_slots: int, device: str) -> Tensor:
    frames = np.repeat(np.arange(column.frames, dtype=np.float32), column.frame_tokens)
    return upload(torch.from_numpy(np.concatenate([np.zeros(text_slots, np.float32), frames])), device)


def frame_mask(column: Column, text_slots: int, causal: bool, device: str) -> Tensor | None:
    """(L, L) bool over [text, image] of a column: who may see whom by time; None when all may.

    Text has t = 0, so it never sees a later frame (PyramidFlow's temporal causal mask).
    """
    if not causal or column.frames == 1:
        return None
    t = _times(column, text_slots, device)  # the square is not cached: at full size it is 240 MB
    return t[:, None] >= t[None, :]
