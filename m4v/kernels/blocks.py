"""Block-sparse attention: blocks of tokens that may not see each other are never computed (FlexAttention)."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4v.devices import upload
from m4v.kernels.selection import attention_choice, uses_flex

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens per block
FLEX_FROM = 4096  # tokens; below, `auto` takes the dense mask, which is then faster in training too (H200)
LEAST_HEAD = 16  # channels

Grid = NDArray[np.bool_]


def uses_blocks(device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether attention over `tokens` packed tokens runs on block masks."""
    if device.type != "cuda" or dtype == torch.float64 or head_dim < LEAST_HEAD or not uses_flex():
        return False
    return attention_choice() == "flex" or (tokens >= FLEX_FROM and dtype != torch.float32)


def block_grids(owner: NDArray[Any], time: NDArray[Any], open_tokens: int) -> tuple[Grid, Grid]:
    """Which blocks of `BLOCK` tokens see which: (partly, wholly), bool (blocks, blocks), query first.

    A token sees those of its own `owner` that are not later in `time`. The first `open_tokens` are decided per
    batch row (text and its pads), so blocks with one of them are never whole, nor is an incomplete last block.
    """
    tokens, blocks = len(owner), -(-len(owner) // BLOCK)
    change = (np.diff(owner) != 0) | (np.diff(time) != 0)
    runs = np.concatenate([[0], np.cumsum(change)])
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    sees = (owner[first][:, None] == owner[first][None]) & (time[first][:, None] >= time[first][None])
    holds = np.zeros((blocks, len(first)), np.int64)
    holds[np.arange(tokens) // BLOCK, runs] = 1
    some, none = holds @ sees @ holds.T > 0, holds @ ~sees @ holds.T > 0
    closed = np.ones(blocks, bool)
    closed[: -(-open_tokens // BLOCK)] = False
    if tokens % BLOCK:
        closed[-1] = False
    whole = some & ~none & closed[:, None] & closed[None]
    return some & ~whole, whole


def block_mask(owner: NDArray[Any], time: NDArray[Any], open_tokens: int, device: str) -> BlockMask:
    """The static part of a mask (see `block_grids`); `with_owners` completes it."""
    from torch.nn.attention.flex_attention import BlockMask

    partly, wholly = block_grids(owner, time, open_tokens)
    tables = (*_ordered(partly, device), *_ordered(wholly, device))
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=BLOCK, seq_lengths=(len(owner), len(owner)))


def _ordered(grid: Grid, device: str) -> tuple[Tensor, Tensor]:
    """Blocks that each row of the grid names: their number (1, 1, rows), and indices (1, 1, rows, columns)."""
    count, order = grid.sum(axis=1), np.argsort(~grid, axis=1, kind="stable")
    return tuple(upload(torch.from_numpy(u.astype(np.int32))[None, None], device) for u in (count, order))  # type: ignore[return-value]


def with_owners(static: BlockMask, owner: Tensor, time: Tensor) -> BlockMask:
    """The mask of a batch: `owner` (b, L) and `time` (L,), int32; a token sees tokens of its owner and past."""

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (owner[b, q] == owner[b, k]) & (time[q] >= time[k])

    mask = copy.copy(static)
    mask.mask_mod = visible
    return mask


@lru_cache
def _attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention
    # One compilation serves all lengths (two: one row and several). With fullgraph an unforeseen kind of input is
    # an error: without, it would run uncompiled, on the whole square of scores.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, compiled: bool = True) -> Tensor:
    """Attention under `mask`; q, k, v (b, L, H, size) -> (b, L, H size). Uncompiled it works on any device and
    computes the whole square."""
    out: Tensor = _attention(compiled)(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask)
    return out.transpose(1, 2).flatten(2)
