# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Sums over many rows in an order fixed by the shape: every program leaves its part, these kernels add the parts up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.operators import operator

# Sizes that differ from layout to layout: one compilation of a kernel serves them all. Else those of 16 n tokens had
# their own, and perhaps other bits. What a row of channels begins with is known from its width alone.
LAYOUT_SIZES = ("tokens", "rows", "columns", "count", "extent", "text", "opening", "pieces", "begin")
TILE = 16  # rows whose part of a sum one program keeps to itself
_PARTS, _CHANNELS = 64, 64  # of a tile of the last sum
_TALL, _STEP, _WIDE = 128, 32, 128  # rows of a tile of `column_sums`, those in flight together, and its channels


@triton.jit(do_not_specialize=("tiles",))
def _add_parts(
    parts, order, bounds, out, tiles, width, parts_block: tl.constexpr, channels_block: tl.constexpr
):  # fmt: skip
    """out[batch, column] = sum of parts[batch, order[i]] for i from bounds[column] to bounds[column + 1]."""
    column, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channels_block + tl.arange(0, channels_block)
    inside = channel < width
    begin, end = tl.load(bounds + column), tl.load(bounds + column + 1)
    total = tl.zeros((parts_block, channels_block), tl.float32)
    first = begin
    while first < end:  # Triton's interpreter has no ranges between tensors
        place = first + tl.arange(0, parts_block)
        tile = tl.load(order + place, mask=place < end, other=0).to(tl.int64)
        where = (batch * tiles + tile[:, None]) * width + channel[None]
        total += tl.load(parts + where, mask=(place < end)[:, None] & inside[None], other=0.0)
        first += parts_block
    target = (batch * tl.num_programs(0) + column) * width + channel
    tl.store(out + target, tl.sum(total, axis=0), mask=inside)


def add_parts(parts: Tensor, order: Tensor, bounds: Tensor) -> Tensor:
    """Sums (b, columns, width) of `parts` (b, tiles, width) float32 by column: column c owns the tiles
    `order[bounds[c]:bounds[c + 1]]`, which are added in that order. Both tables are int32."""
    batch, tiles, width = parts.shape
    columns = bounds.shape[0] - 1
    out = parts.new_empty((batch, columns, width))
    _add_parts[columns, triton.cdiv(width, _CHANNELS), batch](
        parts, order, bounds, out, tiles, width, _PARTS, _CHANNELS, num_warps=4
    )
    return out


@triton.jit(do_not_specialize=("rows",))
def _sum_tiles(
    given, parts, rows, width: tl.constexpr, tile_rows: tl.constexpr, step: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """Sums of some columns over a tile of rows."""
    tile = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros((step, block), tl.float32)
    for first in range(0, tile_rows, step):
        row = tile * tile_rows + first + tl.arange(0, step)
        inside = (row < rows)[:, None] & (channel < width)[None]
        total += tl.load(given + row[:, None] * width + channel[None], mask=inside, other=0.0).to(tl.float32)
    tl.store(parts + tile * width + channel, tl.sum(total, axis=0), mask=channel < width)


@operator("m4v::column_sums")
def column_sums(rows: Tensor) -> Tensor:
    """Sums (width,) float32 of the columns of rows (n, width)."""
    count, width = rows.shape
    parts = rows.new_empty((triton.cdiv(count, _TALL), width), dtype=torch.float32)
    _sum_tiles[parts.shape[0], triton.cdiv(width, _WIDE)](
        rows.contiguous(), parts, count, width, _TALL, _STEP, _WIDE, num_warps=4
    )
    return parts.sum(0)


@column_sums.register_fake
def _(rows):
    return rows.new_empty((rows.shape[1],), dtype=torch.float32)


def block_of(width: int) -> int:
    """Channels of the block that holds a row of `width`."""
    return int(triton.next_power_of_2(width))
