# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What a single-stream block's last product reads, as Triton kernels: [mixers' sum | GELU of the MLP] in one buffer.

The mixer's part is the inverse re-composition (both copies of a text token added, pads zero) times SiLU(z), plus the
attention's output and the temporal branch where a block has them. Nothing is padded, sliced or concatenated.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import LAYOUT_SIZES, TILE, block_of
from m4v.kernels.operators import operator
from m4v.kernels.pieces import spread_back

_WARPS, _ELEMENTS = 4, 1024
_SLOPE = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
_CUBE = tl.constexpr(0.044715)


@triton.jit
def _collected(y, first, second, valid, row, token, text, batch, here, channel, width, inside, twice: tl.constexpr):
    """The scan's output of a packed row: both copies of a text token, zero for its pads."""
    is_text = here & (token < text)
    there = here & (
        (token >= text) | (tl.load(valid + batch * text + token, mask=is_text, other=0.0).to(tl.int32) != 0)
    )
    one = tl.load(first + row, mask=there, other=0)
    found = tl.load(y + one * width + channel, mask=inside & there, other=0.0).to(tl.float32)
    two = one
    if twice:
        two = tl.load(second + batch * text + token, mask=there & is_text, other=0)
        found += tl.load(y + two * width + channel, mask=inside & there & is_text, other=0.0).to(tl.float32)
    return found, one, two, there, there & is_text & twice


@triton.jit
def _temporal_place(back, token, text, batch, pieces, channel, width, here, size: tl.constexpr):
    """Where a token's row of the temporal branch lies in (b, heads, pieces, head size)."""
    image = here & (token >= text)
    piece = tl.load(back + token - text, mask=image, other=0).to(tl.int64)
    return (batch * (width // size) + channel // size) * pieces * size + piece * size + channel % size, image


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _mix(
    y, z, other, temporal, scale, first, second, valid, back, out, tokens, extent, text, opening, pieces, out_width,
    width: tl.constexpr, block: tl.constexpr, size: tl.constexpr,
    scans: tl.constexpr, twice: tl.constexpr, others: tl.constexpr, temporals: tl.constexpr,
):  # fmt: skip
    """One token's row of the mixers' sum. `text` tokens have two copies or pads; image tokens begin at `opening`."""
    number = tl.program_id(0).to(tl.int64)
    batch, token = number // tokens, number % tokens
    channel = tl.arange(0, block)
    inside = channel < width
    total = tl.zeros((block,), tl.float32)
    if scans:
        row = batch * extent + token
        found, _, _, _, _ = _collected(
            y, first, second, valid, row, token, text, batch, token >= 0, channel, width, inside, twice
        )
        gate = tl.load(z + row * width + channel, mask=inside, other=0.0).to(tl.float32)
        total += found * gate * tl.sigmoid(gate)
    if others:
        total += tl.load(other + number * width + channel, mask=inside, other=0.0).to(tl.float32)
    if temporals:
        place, image = _temporal_place(back, token, opening, batch, pieces, channel, width, token >= 0, size)
        added = tl.load(temporal + place, mask=inside & image, other=0.0).to(tl.float32)
        total += added * tl.load(scale).to(tl.float32)
    tl.store(out + number * out_width + channel, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _mix_back(
    grad, y, z, temporal, first, second, valid, back, to_y, to_z, parts, rows, tokens, extent, text, opening, pieces,
    grad_width, width: tl.constexpr, block: tl.constexpr, size: tl.constexpr, twice: tl.constexpr,
    temporals: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """Gradients of z and, at the slots of these packed rows, of the scan's output; a tile's part of the scale's."""
    tile = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, block)
    inside = channel < width
    sums = tl.zeros((block,), tl.float32)
    for number in range(tile_rows):
        row = tile * tile_rows + number
        batch, token = row // extent, row % extent
        exists = row < rows
        here = exists & (token < tokens)  # not a register
        place = (batch * tokens + token) * grad_width + channel
        incoming = tl.load(grad + place, mask=inside & here, other=0.0).to(tl.float32)
        found, one, two, there, doubled = _collected(
            y, first, second, valid, row, token, text, batch, here, channel, width, inside, twice
        )
        gate = tl.load(z + row * width + channel, mask=inside & here, other=0.0).to(tl.float32)
        open_ = tl.sigmoid(gate)
        slope = open_ * (1.0 + gate * (1.0 - open_))
        tl.store(
            to_z + row * width + channel, (incoming * found * slope).to(to_z.dtype.element_ty), mask=inside & exists
        )
        passed = (incoming * gate * open_).to(to_y.dtype.element_ty)
        tl.store(to_y + one * width + channel, passed, mask=inside & there)
        if twice:
            tl.store(to_y + two * width + channel, passed, mask=inside & doubled)
        if temporals:
            where, image = _temporal_place(back, token, opening, batch, pieces, channel, width, here, size)
            sums += incoming * tl.load(temporal + where, mask=inside & image, other=0.0).to(tl.float32)
    if temporals:
        tl.store(parts + tile, tl.sum(sums, axis=0))


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _empty_slots(source, real, valid, to_y, tokens, extent, width: tl.constexpr, block: tl.constexpr):
    """Zeros at composed slots that are pads or registers: what `_mix_back` leaves out."""
    slot = tl.program_id(0).to(tl.int64)
    empty = (tl.load(real + slot).to(tl.int32) == 0) | (tl.load(source + slot) % extent >= tokens)
    channel = tl.arange(0, block)
    zero = tl.zeros((block,), to_y.dtype.element_ty)
    tl.store(to_y + slot * width + channel, zero, mask=(channel < width) & empty)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _gelu(given, out, tokens, extent, width, out_width, skipped, elements: tl.constexpr):
    """GELU (tanh) of a piece of a packed row into the row of `out`, behind `skipped` channels."""
    number = tl.program_id(0).to(tl.int64)
    batch, token = number // tokens, number % tokens
    channel = tl.program_id(1) * elements + tl.arange(0, elements)
    inside = channel < width
    value = tl.load(given + (batch * extent + token) * width + channel, mask=inside, other=0.0).to(tl.float32)
    result = value * tl.sigmoid(_SLOPE * value * (1.0 + _CUBE * value * value))
    tl.store(out + number * out_width + skipped + channel, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _gelu_back(grad, given, to_given, tokens, extent, width, grad_width, skipped, elements: tl.constexpr):
    """Gradient of the MLP's packed rows, zero at registers."""
    number = tl.program_id(0).to(tl.int64)
    batch, token = number // extent, number % extent
    channel = tl.program_id(1) * elements + tl.arange(0, elements)
    inside = channel < width
    here = inside & (token < tokens)
    place = number * width + channel
    value = tl.load(given + place, mask=here, other=0.0).to(tl.float32)
    where = (batch * tokens + token) * grad_width + skipped + channel
    incoming = tl.load(grad + where, mask=here, other=0.0).to(tl.float32)
    open_ = tl.sigmoid(_SLOPE * value * (1.0 + _CUBE * value * value))
    slope = open_ + value * open_ * (1.0 - open_) * _SLOPE * (1.0 + 3.0 * _CUBE * value * value)
    tl.store(to_given + place, (incoming * slope).to(to_given.dtype.element_ty), mask=inside)


@operator("m4v::mix")
def mix(
    y: Tensor | None, z: Tensor | None, other: Tensor | None, temporal: Tensor | None, scale: Tensor | None,
    mlp: Tensor | None, source: Tensor | None, real: Tensor | None, first: Tensor | None, second: Tensor | None,
    valid: Tensor | None, back: Tensor | None, bounds: Tensor | None, members: Tensor | None, tokens: int, width: int,
) -> Tensor:  # fmt: skip
    """[`decompose(y) * silu(z) + other + scale * temporal[back]` | `gelu(mlp)`]: (b, tokens, D + MLP channels), without
        `mlp` (b, tokens, D).

    y (b, N, D) is the scan's output in the tables of `Recomposition`, z and mlp are rows of all E packed tokens,
    `other` (b, tokens, D) is an attention's output, `temporal` (b, heads, T, head size) that of the temporal branch
    with the lists of `pool_pieces`. Each mixer may be None, not all of them.
    """
    out = _room(z, other, mlp, tokens, width)
    batch, extent = out.shape[0], tokens if z is None else z.shape[1]
    opening, pieces, size = 0, 0, width
    if temporal is not None and back is not None:
        opening, pieces, size = tokens - back.shape[0], temporal.shape[2], temporal.shape[3]
    _mix[(batch * tokens,)](
        *(out if u is None else u.contiguous() for u in (y, z, other, temporal, scale)),
        *(out if u is None else u for u in (first, second, valid, back)), out,
        tokens, extent, 0 if valid is None else valid.shape[1], opening, pieces, out.shape[2], width, block_of(width),
        size, y is not None, second is not None, other is not None, temporal is not None, num_warps=_WARPS,
    )  # fmt: skip
    if mlp is not None:
        extent, inner = mlp.shape[1:]
        _gelu[(batch * tokens, triton.cdiv(inner, _ELEMENTS))](
            mlp.contiguous(), out, tokens, extent, inner, out.shape[2], width, _ELEMENTS, num_warps=_WARPS
        )
    return out


def _room(z: Tensor | None, other: Tensor | None, mlp: Tensor | None, tokens: int, width: int) -> Tensor:
    """What `mix` fills, of the type of the hidden states."""
    like: Tensor = next(u for u in (mlp, z, other) if u is not None)
    return like.new_empty((like.shape[0], tokens, width + (0 if mlp is None else mlp.shape[2])))


@mix.register_fake
def _(
    y, z, other, temporal, scale, mlp, source, real, first, second, valid, back, bounds, members, tokens, width
):  # fmt: skip
    return _room(z, other, mlp, tokens, width)


@operator("m4v::mix_back")
def _scan_gradient(
    grad: Tensor, y: Tensor, z: Tensor, temporal: Tensor | None, source: Tensor, real: Tensor, first: Tensor,
    second: Tensor | None, valid: Tensor, back: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of y and z, and of the temporal branch's scale (one number, 0 without it)."""
    batch, extent, width = z.shape
    tokens, text = grad.shape[1], valid.shape[1]
    y, z = y.contiguous(), z.contiguous()
    to_y, to_z, tiles = torch.empty_like(y), torch.empty_like(z), triton.cdiv(batch * extent, TILE)
    parts = grad.new_zeros((tiles,), dtype=torch.float32)
    opening, pieces, size = 0, 0, width
    if temporal is not None and back is not None:
        opening, pieces, size = tokens - back.shape[0], temporal.shape[2], temporal.shape[3]
    _empty_slots[(batch * y.shape[1],)](
        source, real, valid, to_y, tokens, extent, width, block_of(width), num_warps=_WARPS
    )
    _mix_back[(tiles,)](
        grad, y, z, y if temporal is None else temporal, first, first if second is None else second, valid,
        first if back is None else back, to_y, to_z, parts, batch * extent, tokens, extent, text, opening, pieces,
        grad.shape[2], width, block_of(width), size, second is not None, temporal is not None, TILE, num_warps=8,
    )  # fmt: skip
    return to_y, to_z, parts.sum()


@_scan_gradient.register_fake
def _(grad, y, z, temporal, source, real, first, second, valid, back):
    return torch.empty_like(y), torch.empty_like(z), grad.new_empty((), dtype=torch.float32)


@operator("m4v::mix_mlp_back")
def _mlp_gradient(grad: Tensor, mlp: Tensor) -> Tensor:
    batch, extent, inner = mlp.shape
    mlp = mlp.contiguous()
    out = torch.empty_like(mlp)
    _gelu_back[(batch * extent, triton.cdiv(inner, _ELEMENTS))](
        grad, mlp, out, grad.shape[1], extent, inner, grad.shape[2], grad.shape[2] - inner, _ELEMENTS, num_warps=_WARPS
    )
    return out


@_mlp_gradient.register_fake
def _(grad, mlp):
    return torch.empty_like(mlp)


@operator("m4v::mix_temporal_back")
def _temporal_gradient(grad: Tensor, temporal: Tensor, scale: Tensor, bounds: Tensor, members: Tensor) -> Tensor:
    return spread_back(grad, scale, bounds, members, torch.empty_like(temporal))


@_temporal_gradient.register_fake
def _(grad, temporal, scale, bounds, members):
    return torch.empty_like(temporal)


def _keep(ctx, inputs, output):
    y, z, other, temporal, scale, mlp, *tables, _, ctx.width = inputs
    ctx.others = other is not None
    scale = None if scale is None else scale.detach()  # a sharded optimizer takes a parameter's data away
    ctx.save_for_backward(y, z, temporal, scale, mlp, *tables)


def _back(ctx, grad):
    y, z, temporal, scale, mlp, source, real, first, second, valid, back, bounds, members = ctx.saved_tensors
    grad = grad.contiguous()
    to_y = to_z = to_temporal = to_scale = None
    if y is not None:
        to_y, to_z, of_scale = _scan_gradient(grad, y, z, temporal, source, real, first, second, valid, back)
        if temporal is not None:
            to_scale = of_scale.to(scale.dtype).reshape(scale.shape)
            to_temporal = _temporal_gradient(grad, temporal, scale, bounds, members)
    to_other = grad[..., : ctx.width] if ctx.others else None
    to_mlp = None if mlp is None else _mlp_gradient(grad, mlp)
    return to_y, to_z, to_other, to_temporal, to_scale, to_mlp, *(None,) * 10


mix.register_autograd(_back, setup_context=_keep)
