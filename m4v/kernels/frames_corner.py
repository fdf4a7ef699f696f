"""The corner of frame-causal attention on CUDA: which Triton kernels run, on which tables (see `frames_triton`)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m4v.kernels import frames_triton as kernels
from m4v.kernels.frames_plain import Backward, Forward
from m4v.kernels.frames_plan import MOST_PARTS, ColumnPlan, key_tiles, query_tiles, text_tiles

_LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """Queries and keys of a block, and warps and pipeline stages of a program."""

    rows: int
    keys: int
    warps: int
    stages: int


# By head size: forward, gradient of queries, gradients of keys.
FORWARD = {64: Blocks(128, 64, 8, 3), 128: Blocks(128, 64, 8, 3)}
QUERY = {64: Blocks(128, 64, 8, 3), 128: Blocks(64, 64, 8, 2)}
KEY = {64: Blocks(64, 64, 8, 3), 128: Blocks(64, 64, 8, 2)}
_OTHER = Blocks(16, 16, 4, 1)  # under Triton's interpreter


class _Tables(NamedTuple):
    splits: int
    times: Tensor
    queries: Tensor
    slopes: Tensor
    keys: Tensor
    ends: Tensor
    texts: Tensor


@lru_cache(512)
def _tables(column: ColumnPlan, size: int, device: str) -> _Tables:
    texts, splits = text_tiles(column, KEY.get(size, _OTHER).keys)
    ends = np.zeros(MOST_PARTS, np.int32)
    ends[: len(column.parts)] = [group.dense for _, group in column.parts]
    # Times of packed tokens: text of any column has time 0, and tokens of other columns are never asked for.
    times = np.zeros(column.image + sum(column.frames), np.int32)
    times[column.image :] = np.repeat(np.arange(len(column.frames)), column.frames)
    made = (
        times, query_tiles(column, FORWARD.get(size, _OTHER).rows), query_tiles(column, QUERY.get(size, _OTHER).rows),
        key_tiles(column, KEY.get(size, _OTHER).keys), ends, texts,
    )  # fmt: skip
    tensors = [torch.from_numpy(u).to(device) for u in made]
    return _Tables(splits, *tensors)


def _named(parts: list[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """As many as the kernels name; those beyond `parts` are never read."""
    return (*parts, *[like] * (MOST_PARTS - len(parts)))


def _scales(q: Tensor) -> tuple[float, float]:
    factor = 1 / math.sqrt(q.shape[-1])
    return factor * _LOG2E, factor


def corner_forward(
    column: ColumnPlan, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, parts: list[Forward], out: Tensor, lse: Tensor
) -> None:
    """Write the column's rows of `out` (b, L, H, size) and its values of the flat `lse`, rectangles included."""
    batch, length, heads, size = q.shape
    tables, blocks = _tables(column, size, str(q.device)), FORWARD.get(size, _OTHER)
    kernels.forward_kernel[len(tables.queries), batch * heads](
        q, k, v, pads, tables.times, tables.queries, _named([p.out for p in parts], out),
        _named([p.lse for p in parts], lse), out, lse, batch, length, heads, pads.shape[1], column.text, column.slots,
        _scales(q)[0], size, blocks.rows, blocks.keys, MOST_PARTS, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def corner_backward(
    column: ColumnPlan, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, out: Tensor, lse: Tensor,
    parts: list[Backward], into: Backward,
) -> None:  # fmt: skip
    """Write the column's rows of the gradients `into` (b, L, H, size), rectangles included."""
    batch, length, heads, size = q.shape
    tables, (scale, factor) = _tables(column, size, str(q.device)), _scales(q)
    logs, deltas = (q.new_empty((batch, heads, length), dtype=torch.float32) for _ in range(2))
    one = (q, k, v, pads, tables.times)
    shape = (batch, length, heads, pads.shape[1], column.text, column.slots)
    blocks = QUERY.get(size, _OTHER)
    kernels.query_kernel[len(tables.slopes), batch * heads](
        *one, tables.slopes, _named([p.q for p in parts], into.q), out, grad, lse, logs, deltas, into.q, *shape, scale,
        factor, size, blocks.rows, blocks.keys, MOST_PARTS, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    blocks = KEY.get(size, _OTHER)
    kernels.key_kernel[len(tables.keys), batch * heads](
        *one, tables.keys, tables.ends, _named([p.k for p in parts], into.k), _named([p.v for p in parts], into.v),
        grad, logs, deltas, into.k, into.v, *shape, column.image, scale, factor, size, blocks.rows, blocks.keys,
        MOST_PARTS, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    sums = q.new_empty((2, tables.splits, batch, column.slots, heads, size), dtype=torch.float32)
    kernels.text_kernel[len(tables.texts), batch * heads](
        *one, tables.texts, grad, logs, deltas, *sums, *shape, scale, factor, size, blocks.rows, blocks.keys,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    for target, found in zip((into.k, into.v), sums.sum(1), strict=True):
        target[:, column.text : column.text + column.slots] = found
