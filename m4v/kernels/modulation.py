# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""AdaLN and the gated end of a block as Triton kernels: every token takes the row of its column, nothing is expanded.

The tables (see `m4v.model.token_runs`) cut the tokens into tiles of one column each, so the gradients of shift, scale
and gate are sums over whole tiles, added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import LAYOUT_SIZES, TILE, add_parts, block_of
from m4v.kernels.operators import operator

_ROWS = 2  # of a tile that are in flight together
_WARPS = 8


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _modulate(
    x, shift, scale, registers, tiles, out, means, inverses, tokens, rows, columns, stride_b, stride_c, epsilon,
    width: tl.constexpr, block: tl.constexpr, tile_rows: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """LayerNorm, shift and scale of a tile of tokens; a tile of registers takes the row of their type."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end, column = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    channel = tl.arange(0, block)
    inside = channel < width
    if column < columns:
        vector = batch * stride_b + column * stride_c + channel
        factor = 1.0 + tl.load(scale + vector, mask=inside, other=0.0).to(tl.float32)
        term = tl.load(shift + vector, mask=inside, other=0.0).to(tl.float32)
        for first in range(0, tile_rows, step):
            row = begin + first + tl.arange(0, step)
            real = (row < end)[:, None] & inside[None]
            place = row[:, None].to(tl.int64) * width + channel[None]
            value = tl.load(x + batch * tokens * width + place, mask=real, other=0.0).to(tl.float32)
            mean = tl.sum(value, axis=1) / width
            apart = tl.where(inside[None], value - mean[:, None], 0.0)
            inverse = tl.rsqrt(tl.sum(apart * apart, axis=1) / width + epsilon)
            result = apart * inverse[:, None] * factor[None] + term[None]
            tl.store(out + batch * rows * width + place, result.to(out.dtype.element_ty), mask=real)
            tl.store(means + batch * tokens + row, mean, mask=row < end)
            tl.store(inverses + batch * tokens + row, inverse, mask=row < end)
    else:
        value = tl.load(registers + (column - columns) * width + channel, mask=inside, other=0.0).to(tl.float32)
        for row in range(tile_rows):
            place = (batch * rows + begin + row) * width + channel
            tl.store(out + place, value.to(out.dtype.element_ty), mask=inside & (begin + row < end))


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _modulate_back(
    grad, x, scale, means, inverses, tiles, grad_x, parts, tokens, rows, count, columns, stride_b, stride_c,
    width: tl.constexpr, block: tl.constexpr, tile_rows: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """Gradient of x, and each tile's part of those of shift (or register) and scale, side by side in `parts`."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end, column = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    channel = tl.arange(0, block)
    inside = channel < width
    of_token = column < columns
    vector = batch * stride_b + column * stride_c + channel
    factor = 1.0 + tl.load(scale + vector, mask=inside & of_token, other=0.0).to(tl.float32)
    to_shift, to_scale = tl.zeros((block,), tl.float32), tl.zeros((block,), tl.float32)
    for first in range(0, tile_rows, step):
        row = begin + first + tl.arange(0, step)
        real = (row < end)[:, None] & inside[None]
        place = row[:, None].to(tl.int64) * width + channel[None]
        incoming = tl.load(grad + batch * rows * width + place, mask=real, other=0.0).to(tl.float32)
        value = tl.load(x + batch * tokens * width + place, mask=real & of_token, other=0.0).to(tl.float32)
        mean = tl.load(means + batch * tokens + row, mask=(row < end) & of_token, other=0.0)
        inverse = tl.load(inverses + batch * tokens + row, mask=(row < end) & of_token, other=0.0)
        normed = tl.where(real, (value - mean[:, None]) * inverse[:, None], 0.0)
        inner = incoming * factor[None]
        along = tl.sum(inner * normed, axis=1) / width
        result = (inner - tl.sum(inner, axis=1)[:, None] / width - normed * along[:, None]) * inverse[:, None]
        tl.store(grad_x + batch * tokens * width + place, result.to(grad_x.dtype.element_ty), mask=real & of_token)
        to_shift += tl.sum(incoming, axis=0)
        to_scale += tl.sum(incoming * normed, axis=0)
    part = (batch * count + tile) * 2 * width + channel
    tl.store(parts + part, to_shift, mask=inside)
    tl.store(parts + part + width, to_scale, mask=inside)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _gate(
    x, gate, inner, tiles, out, tokens, stride_b, stride_c,
    width: tl.constexpr, block: tl.constexpr, tile_rows: tl.constexpr, step: tl.constexpr, added: tl.constexpr,
):  # fmt: skip
    """`[x +] gate * inner`, the gate of each tile's column."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end, column = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    channel = tl.arange(0, block)
    inside = channel < width
    factor = tl.load(gate + batch * stride_b + column * stride_c + channel, mask=inside, other=0.0).to(tl.float32)
    for first in range(0, tile_rows, step):
        row = begin + first + tl.arange(0, step)
        real = (row < end)[:, None] & inside[None]
        place = (batch * tokens + row[:, None]) * width + channel[None]
        result = factor[None] * tl.load(inner + place, mask=real, other=0.0).to(tl.float32)
        if added:
            result += tl.load(x + place, mask=real, other=0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _gate_back(
    grad, gate, inner, tiles, grad_inner, parts, tokens, count, stride_b, stride_c,
    width: tl.constexpr, block: tl.constexpr, tile_rows: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """Gradient of `inner`, and each tile's part of the gate's."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end, column = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    channel = tl.arange(0, block)
    inside = channel < width
    factor = tl.load(gate + batch * stride_b + column * stride_c + channel, mask=inside, other=0.0).to(tl.float32)
    to_gate = tl.zeros((block,), tl.float32)
    for first in range(0, tile_rows, step):
        row = begin + first + tl.arange(0, step)
        real = (row < end)[:, None] & inside[None]
        place = (batch * tokens + row[:, None]) * width + channel[None]
        incoming = tl.load(grad + place, mask=real, other=0.0).to(tl.float32)
        to_gate += tl.sum(incoming * tl.load(inner + place, mask=real, other=0.0).to(tl.float32), axis=0)
        tl.store(grad_inner + place, (incoming * factor[None]).to(grad_inner.dtype.element_ty), mask=real)
    tl.store(parts + (batch * count + tile) * width + channel, to_gate, mask=inside)


@operator("m4v::modulate")
def modulate(
    x: Tensor, shift: Tensor, scale: Tensor, registers: Tensor | None, tiles: Tensor, order: Tensor, bounds: Tensor,
    rows: int, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`layer_norm(x) * (1 + scale) + shift` of each token's column, with the registers behind the tokens.

    x (b, L, D), shift and scale (b, C, D), registers (types, D) or None; `tiles`, `order`, `bounds` are those of
    `TokenRuns`. Returns the modulated rows (b, `rows`, D), and mean and inverse deviation (b, L) for the gradient.
    """
    batch, tokens, width = x.shape
    out = x.new_empty((batch, rows, width))
    means, inverses = (x.new_empty((batch, tokens), dtype=torch.float32) for _ in range(2))
    _modulate[tiles.shape[0], batch](
        x, shift, scale, shift if registers is None else registers, tiles, out, means, inverses, tokens, rows,
        shift.shape[1], shift.stride(0), shift.stride(1), epsilon, width, block_of(width), TILE, _ROWS,
        num_warps=_WARPS,
    )  # fmt: skip
    return out, means, inverses


@modulate.register_fake
def _(x, shift, scale, registers, tiles, order, bounds, rows, epsilon):
    batch, tokens, width = x.shape
    moments = (x.new_empty((batch, tokens), dtype=torch.float32) for _ in range(2))
    return (x.new_empty((batch, rows, width)), *moments)


@operator("m4v::modulate_back")
def _modulate_gradient(
    grad: Tensor, x: Tensor, scale: Tensor, means: Tensor, inverses: Tensor, tiles: Tensor, order: Tensor,
    bounds: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of x, and the sums by column (b, columns and register types, [shift | scale])."""
    batch, tokens, width = x.shape
    count = tiles.shape[0]
    grad_x = torch.empty_like(x)
    parts = x.new_empty((batch, count, 2 * width), dtype=torch.float32)
    _modulate_back[count, batch](
        grad, x, scale, means, inverses, tiles, grad_x, parts, tokens, grad.shape[1], count, scale.shape[1],
        scale.stride(0), scale.stride(1), width, block_of(width), TILE, _ROWS, num_warps=_WARPS,
    )  # fmt: skip
    return grad_x, add_parts(parts, order, bounds)


@_modulate_gradient.register_fake
def _(grad, x, scale, means, inverses, tiles, order, bounds):
    sums = x.new_empty((x.shape[0], bounds.shape[0] - 1, 2 * x.shape[2]), dtype=torch.float32)
    return torch.empty_like(x), sums


def _keep_modulated(ctx, inputs, output):
    x, _, scale, registers, tiles, order, bounds, _, _ = inputs
    ctx.save_for_backward(x, scale, output[1], output[2], tiles, order, bounds)
    ctx.registers_dtype = None if registers is None else registers.dtype
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _modulated_back(ctx, grad, *_):
    x, scale, means, inverses, tiles, order, bounds = ctx.saved_tensors
    grad_x, sums = _modulate_gradient(grad.contiguous(), x, scale, means, inverses, tiles, order, bounds)
    columns, width = scale.shape[1], x.shape[2]
    to_vectors = sums[:, :columns].to(scale.dtype)
    to_registers = None
    if ctx.registers_dtype is not None:
        to_registers = sums[:, columns:, :width].sum(0).to(ctx.registers_dtype)
    return grad_x, to_vectors[..., :width], to_vectors[..., width:], to_registers, None, None, None, None, None


modulate.register_autograd(_modulated_back, setup_context=_keep_modulated)


@operator("m4v::gated_sum")
def gated_sum(x: Tensor, gate: Tensor, inner: Tensor, tiles: Tensor, order: Tensor, bounds: Tensor) -> Tensor:
    """`x + gate * inner`: x and inner (b, L, D), gate (b, C, D), the tables of `TokenRuns` without registers."""
    batch, tokens, width = x.shape
    out = torch.empty_like(x)
    _gate[tiles.shape[0], batch](
        x, gate, inner, tiles, out, tokens, gate.stride(0), gate.stride(1), width, block_of(width), TILE, _ROWS,
        True, num_warps=_WARPS,
    )  # fmt: skip
    return out


@gated_sum.register_fake
def _(x, gate, inner, tiles, order, bounds):
    return torch.empty_like(x)


@operator("m4v::gated_sum_back")
def _gated_gradient(
    grad: Tensor, gate: Tensor, inner: Tensor, tiles: Tensor, order: Tensor, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `inner` and of the gate."""
    batch, tokens, width = inner.shape
    count = tiles.shape[0]
    grad_inner = torch.empty_like(inner)
    parts = inner.new_empty((batch, count, width), dtype=torch.float32)
    _gate_back[count, batch](
        grad, gate, inner, tiles, grad_inner, parts, tokens, count, gate.stride(0), gate.stride(1), width,
        block_of(width), TILE, _ROWS, num_warps=_WARPS,
    )  # fmt: skip
    return grad_inner, add_parts(parts, order, bounds).to(gate.dtype)


@_gated_gradient.register_fake
def _(grad, gate, inner, tiles, order, bounds):
    return torch.empty_like(inner), gate.new_empty(gate.shape)


def _keep_gated(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:])


def _gated_back(ctx, grad):
    gate, inner, tiles, order, bounds = ctx.saved_tensors
    to_inner, to_gate = _gated_gradient(grad.contiguous(), gate, inner, tiles, order, bounds)
    return grad, to_gate, to_inner, None, None, None


gated_sum.register_autograd(_gated_back, setup_context=_keep_gated)
