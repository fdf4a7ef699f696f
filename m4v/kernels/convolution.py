# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Causal depthwise convolution and SiLU as one Triton kernel, for sequences that lie behind each other.

Sums are float32. Backward computes the convolution again instead of keeping it: once, for the gradient of what goes
into SiLU, which a second kernel hands to the tokens that were read. Every program leaves its part of the gradients of
taps and bias, which are then added up in one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.operators import operator
from m4v.kernels.scan import OWN_CONV_WIDTHS

_CHANNELS = 64
_ROWS, _ROWS_BACK = 64, 32  # with 64 in backward a thread needs 189 registers, and few programs share a processor
_WARPS = 4


@triton.jit
def _there(row, other, column, begin, length, packed: tl.constexpr):
    """Whether row `other` exists and belongs to the same sequence as `row`."""
    here = (row >= 0) & (row < length) & (other >= 0) & (other < length)
    if packed:
        here &= tl.load(column + begin + row, mask=here, other=0) == tl.load(column + begin + other, mask=here, other=0)
    return here


@triton.jit
def _convolved(
    x, weight, offset, column, begin, row, channel, inside, length, channels, width: tl.constexpr, packed: tl.constexpr
):  # fmt: skip
    """Convolution and bias of the rows `row`, before SiLU."""
    total = tl.zeros((row.shape[0], channel.shape[0]), tl.float32) + offset[None]
    for tap in tl.static_range(width):
        other = row - (width - 1 - tap)
        mask = _there(row, other, column, begin, length, packed)[:, None] & inside[None]
        value = tl.load(x + (begin + other)[:, None] * channels + channel[None], mask=mask, other=0.0).to(tl.float32)
        total += value * tl.load(weight + channel * width + tap, mask=inside, other=0.0).to(tl.float32)[None]
    return total


@triton.jit(do_not_specialize=("length",))
def _forward_kernel(
    x, weight, bias, column, out, length, channels, width: tl.constexpr, packed: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(2).to(tl.int64) * length
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    value = _convolved(x, weight, offset, column, begin, row, channel, inside, length, channels, width, packed)
    value *= tl.sigmoid(value)
    target = (begin + row)[:, None] * channels + channel[None]
    tl.store(out + target, value.to(out.dtype.element_ty), mask=(row < length)[:, None] & inside[None])


@triton.jit(do_not_specialize=("length",))
def _change_kernel(
    grad, x, weight, bias, column, change, parts, length, channels, width: tl.constexpr, packed: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradient of what goes into SiLU, and a tile's part of those of the taps and, behind them, of the bias."""
    tile, tiles = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    batch = tl.program_id(2).to(tl.int64)
    begin = batch * length
    row = tile * rows + tl.arange(0, rows)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    value = _convolved(x, weight, offset, column, begin, row, channel, inside, length, channels, width, packed)
    gate = tl.sigmoid(value)
    target = (begin + row)[:, None] * channels + channel[None]
    there = (row < length)[:, None] & inside[None]
    incoming = tl.load(grad + target, mask=there, other=0.0).to(tl.float32)
    result = incoming * gate * (1.0 + value * (1.0 - gate))
    tl.store(change + target, result, mask=there)
    part = parts + (batch * tiles + tile) * (width + 1) * channels + channel
    for tap in tl.static_range(width):
        other = row - (width - 1 - tap)
        mask = _there(row, other, column, begin, length, packed)[:, None] & inside[None]
        read = tl.load(x + (begin + other)[:, None] * channels + channel[None], mask=mask, other=0.0).to(tl.float32)
        tl.store(part + tap * channels, tl.sum(result * read, axis=0), mask=inside)
    tl.store(part + width * channels, tl.sum(result, axis=0), mask=inside)


@triton.jit(do_not_specialize=("length",))
def _spread_kernel(
    change, weight, column, to_x, length, channels, width: tl.constexpr, packed: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """Gradient of x: of the rows that read a token `ahead` rows later, by tap `width - 1 - ahead`."""
    begin = tl.program_id(2).to(tl.int64) * length
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.zeros((rows, block), tl.float32)
    for ahead in tl.static_range(width):
        reader = row + ahead
        mask = _there(row, reader, column, begin, length, packed)[:, None] & inside[None]
        tap = tl.load(weight + channel * width + (width - 1 - ahead), mask=inside, other=0.0).to(tl.float32)
        value = tl.load(change + (begin + reader)[:, None] * channels + channel[None], mask=mask, other=0.0)
        total += value * tap[None]
    target = (begin + row)[:, None] * channels + channel[None]
    tl.store(to_x + target, total.to(to_x.dtype.element_ty), mask=(row < length)[:, None] & inside[None])


def convolve_silu(x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None = None) -> Tensor:
    """SiLU of the causal depthwise convolution of x (b, L, D) with taps (D, width) and bias (D,): (b, L, D) in the type
    of x; the last tap is that of the token itself.

    `column` (b, L) names each token's sequence, one run of tokens each: no tap reaches into another one; None: each
    row is one. Raises ValueError for other shapes, or widths that are not in `OWN_CONV_WIDTHS`.
    """
    shapes = x.ndim == 3 and weight.shape == (x.shape[-1], weight.shape[-1]) and bias.shape == x.shape[-1:]
    if not shapes or weight.shape[1] not in OWN_CONV_WIDTHS or (column is not None and column.shape != x.shape[:2]):
        raise ValueError(f"no convolution of x {tuple(x.shape)} with taps {tuple(weight.shape)}, bias {bias.shape}")
    column = None if column is None else column.to(torch.int32).contiguous()
    out: Tensor = _forward(x, weight, bias, column)
    return out


def _grid(x: Tensor, rows: int) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[1], rows), triton.cdiv(x.shape[2], _CHANNELS), x.shape[0]


@operator("m4v::causal_conv_silu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None) -> Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _forward_kernel[_grid(x, _ROWS)](
            x, weight, bias, x if column is None else column, out, x.shape[1], x.shape[2], weight.shape[1],
            column is not None, _ROWS, _CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    return out


@_forward.register_fake
def _(x, weight, bias, column):
    return x.new_empty(x.shape)


@operator("m4v::causal_conv_silu_back")
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps and of the bias."""
    grad, x, weight, bias = (u.contiguous() for u in (grad, x, weight, bias))
    (batch, length, channels), width = x.shape, weight.shape[1]
    to_x, grid = torch.empty_like(x), _grid(x, _ROWS_BACK)
    change = torch.empty_like(x, dtype=torch.float32)
    parts = torch.empty((batch * grid[0], width + 1, channels), dtype=torch.float32, device=x.device)
    order, sizes = x if column is None else column, (length, channels, width, column is not None, _ROWS_BACK, _CHANNELS)
    with torch.cuda.device_of(x):
        _change_kernel[grid](grad, x, weight, bias, order, change, parts, *sizes, num_warps=_WARPS)
        _spread_kernel[grid](change, weight, order, to_x, *sizes, num_warps=_WARPS)
    total = parts.sum(0)
    return to_x, total[:width].t().to(weight.dtype).contiguous(), total[width].to(bias.dtype).clone()


@_backward.register_fake
def _(grad, x, weight, bias, column):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _keep(ctx, inputs, output):
    x, weight, bias, column = inputs
    # Not the parameters themselves, whose data a sharded optimizer takes away before backward.
    ctx.save_for_backward(x, weight.detach(), bias.detach(), column)


def _gradients(ctx, grad):
    return (*_backward(grad, *ctx.saved_tensors), None)


_forward.register_autograd(_gradients, setup_context=_keep)
