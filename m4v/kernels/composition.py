# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""MM-token re-composition as one Triton kernel: what the scan reads, in its order, straight from the projections.

Forward gathers the packed row behind each composed slot, norms and turns C and B, and makes step sizes of dt. Backward
goes by packed row: it adds the two copies of a text token and goes back through turn and norm once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import LAYOUT_SIZES, TILE, block_of
from m4v.kernels.convolution import convolve_gathered
from m4v.kernels.head_rows import normed, normed_back, turned
from m4v.kernels.operators import operator

_WARPS, _WARPS_BACK = 4, 8


@triton.jit
def _softplus(value):
    """log(1 + e^value), exact for small results too; the value itself from 20 on, as torch."""
    power = tl.exp(tl.minimum(value, 20.0))
    one = 1.0 + power
    exact = tl.where(one == 1.0, power, tl.log(one) * power / tl.where(one == 1.0, 1.0, one - 1.0))
    return tl.where(value > 20.0, value, exact)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _compose(
    c, b, x, dt, weight_c, weight_b, turn, dt_bias, source, real, to_c, to_b, to_x, to_dt, extent, epsilon,
    heads: tl.constexpr, size: tl.constexpr, heads_block: tl.constexpr, steps: tl.constexpr, dt_row: tl.constexpr,
    steps_block: tl.constexpr, turns: tl.constexpr, values: tl.constexpr,
):  # fmt: skip
    """One composed slot: zeros when it is a pad. Without `values` the place of x gets the number of its packed row, -1
    for a pad."""
    slot = tl.program_id(0).to(tl.int64)
    packed = tl.load(source + slot)
    there = tl.load(real + slot).to(tl.int32) != 0
    head, channel = tl.arange(0, heads_block), tl.arange(0, size)
    place = head[:, None] * size + channel[None]
    inside = (head < heads)[:, None]
    given, target = packed * heads * size + place, slot * heads * size + place
    if values:
        tl.store(to_x + target, tl.load(x + given, mask=inside & there, other=0.0), mask=inside)
    else:
        tl.store(to_x + slot, tl.where(there, packed, -1).to(tl.int32))
    of_c = tl.load(c + given, mask=inside & there, other=0.0).to(tl.float32)
    of_b = tl.load(b + given, mask=inside & there, other=0.0).to(tl.float32)
    of_c = normed(of_c, epsilon, size)[0] * tl.load(weight_c + channel).to(tl.float32)[None]
    of_b = normed(of_b, epsilon, size)[0] * tl.load(weight_b + channel).to(tl.float32)[None]
    if turns:
        angle = turn + (packed % extent) * size
        of_c = turned(of_c, angle, 1.0, heads_block, size)
        of_b = turned(of_b, angle, 1.0, heads_block, size)
    tl.store(to_c + target, of_c.to(to_c.dtype.element_ty), mask=inside)
    tl.store(to_b + target, of_b.to(to_b.dtype.element_ty), mask=inside)
    step = tl.arange(0, steps_block)
    value = tl.load(dt + packed * dt_row + step, mask=step < steps, other=0.0).to(tl.float32)
    value += tl.load(dt_bias + step, mask=step < steps, other=0.0).to(tl.float32)
    tl.store(to_dt + slot * steps + step, tl.where(there, _softplus(value), 0.0), mask=step < steps)


@triton.jit
def _both(grad, first, second, doubled, place, mask):
    """Gradient rows of a packed token: of its slot and, for `doubled`, of its second copy."""
    found = tl.load(grad + first + place, mask=mask, other=0.0).to(tl.float32)
    return found + tl.load(grad + second + place, mask=mask & doubled, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _compose_back(
    grad_c, grad_b, grad_x, grad_dt, c, b, dt, weight_c, weight_b, turn, dt_bias, first, second, valid,
    to_c, to_b, to_x, to_dt, parts_c, parts_b, parts_dt, rows, extent, text, epsilon,
    heads: tl.constexpr, size: tl.constexpr, heads_block: tl.constexpr, steps: tl.constexpr, dt_row: tl.constexpr,
    steps_block: tl.constexpr, turns: tl.constexpr, twice: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of packed rows, and its part of those of the norms' weights and of dt's bias."""
    tile = tl.program_id(0).to(tl.int64)
    head, channel, step = tl.arange(0, heads_block), tl.arange(0, size), tl.arange(0, steps_block)
    place = head[:, None] * size + channel[None]
    inside = (head < heads)[:, None]
    scale_c, scale_b = tl.load(weight_c + channel).to(tl.float32), tl.load(weight_b + channel).to(tl.float32)
    bias = tl.load(dt_bias + step, mask=step < steps, other=0.0).to(tl.float32)
    sum_c = tl.zeros((heads_block, size), tl.float32)
    sum_b = tl.zeros((heads_block, size), tl.float32)
    sum_dt = tl.zeros((steps_block,), tl.float32)
    for number in range(tile_rows):
        row = tile * tile_rows + number
        here = row < rows
        token, batch = row % extent, row // extent
        is_text = here & (token < text)
        there = here & (
            (token >= text) | (tl.load(valid + batch * text + token, mask=is_text, other=0.0).to(tl.int32) != 0)
        )
        one, two = tl.load(first + row, mask=there, other=0), 0
        doubled = there & is_text & twice
        if twice:
            two = tl.load(second + batch * text + token, mask=doubled, other=0)
        mask, width, given = inside & there, heads * size, row * heads * size + place
        value = _both(grad_x, one * width, two * width, doubled, place, mask)
        tl.store(to_x + given, value.to(to_x.dtype.element_ty), mask=inside & here)
        of_c = _both(grad_c, one * width, two * width, doubled, place, mask)
        of_b = _both(grad_b, one * width, two * width, doubled, place, mask)
        if turns:
            of_c = turned(of_c, turn + token * size, -1.0, heads_block, size)
            of_b = turned(of_b, turn + token * size, -1.0, heads_block, size)
        was_c = tl.load(c + given, mask=mask, other=0.0).to(tl.float32)
        was_b = tl.load(b + given, mask=mask, other=0.0).to(tl.float32)
        of_c, part_c = normed_back(of_c, was_c, scale_c, epsilon, size)
        of_b, part_b = normed_back(of_b, was_b, scale_b, epsilon, size)
        tl.store(to_c + given, of_c.to(to_c.dtype.element_ty), mask=inside & here)
        tl.store(to_b + given, of_b.to(to_b.dtype.element_ty), mask=inside & here)
        sum_c += part_c
        sum_b += part_b
        lane = step < steps
        change = _both(grad_dt, one * steps, two * steps, doubled, step, lane & there)
        raw = tl.load(dt + row * dt_row + step, mask=lane & there, other=0.0).to(tl.float32) + bias
        change = tl.where(raw > 20.0, change, change * tl.sigmoid(raw))
        # Lanes behind the steps are zero, and so are the columns there.
        tl.store(to_dt + row * dt_row + step, change.to(to_dt.dtype.element_ty), mask=(step < dt_row) & here)
        sum_dt += change
    tl.store(parts_c + tile * size + channel, tl.sum(sum_c, axis=0))
    tl.store(parts_b + tile * size + channel, tl.sum(sum_b, axis=0))
    tl.store(parts_dt + tile * steps + step, sum_dt, mask=step < steps)


@operator("m4v::compose")
def compose(
    c: Tensor, b: Tensor, x: Tensor, dt: Tensor, weight_c: Tensor, weight_b: Tensor, turn: Tensor, dt_bias: Tensor,
    source: Tensor, real: Tensor, first: Tensor, second: Tensor | None, valid: Tensor, epsilon: float, turns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The scan's c, b, x (b, N, D) and step sizes float32 (b, N, steps) from the projections of the packed rows
    (b, E, D) and (b, E, steps). dt may have more columns, which nobody reads; their gradient is zero.

    `weight_c`, `weight_b` (head size,) are RMSNorm's, `turn` (E, head size / 2) complex64, `dt_bias` (steps,); the
    tables are those of `Recomposition`. The head size is a power of two. Pads are zero.
    """
    x = x.contiguous()
    to_x = x.new_empty((x.shape[0], source.shape[0] // x.shape[0], x.shape[2]))
    to_c, to_b, sizes = _composed(
        c, b, x, dt, weight_c, weight_b, turn, dt_bias, source, real, to_x, epsilon, turns, values=True
    )
    return to_c, to_b, to_x, sizes


def _composed(
    c: Tensor, b: Tensor, x: Tensor, dt: Tensor, weight_c: Tensor, weight_b: Tensor, turn: Tensor, dt_bias: Tensor,
    source: Tensor, real: Tensor, to_x: Tensor, epsilon: float, turns: bool, values: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """c, b and step sizes of `compose`; `to_x` is written."""
    batch, extent, width = c.shape
    size, steps, length = weight_c.shape[0], dt_bias.shape[0], source.shape[0] // batch
    c, b, dt = (u.contiguous() for u in (c, b, dt))
    outs = [u.new_empty((batch, length, width)) for u in (c, b)]
    sizes = dt.new_empty((batch, length, steps), dtype=torch.float32)
    _compose[(batch * length,)](
        c, b, x, dt, weight_c, weight_b, torch.view_as_real(turn), dt_bias, source, real, *outs, to_x, sizes, extent,
        epsilon, width // size, size, block_of(width // size), steps, dt.shape[2], block_of(steps), turns, values,
        num_warps=_WARPS,
    )  # fmt: skip
    return (*outs, sizes)  # type: ignore[return-value]


@compose.register_fake
def _(c, b, x, dt, weight_c, weight_b, turn, dt_bias, source, real, first, second, valid, epsilon, turns):
    batch, _, width = x.shape
    length = source.shape[0] // batch
    sizes = dt.new_empty((batch, length, dt_bias.shape[0]), dtype=torch.float32)
    return (*(u.new_empty((batch, length, width)) for u in (c, b, x)), sizes)


@operator("m4v::compose_back")
def _gradient(
    grad_c: Tensor, grad_b: Tensor, grad_x: Tensor, grad_dt: Tensor, c: Tensor, b: Tensor, dt: Tensor,
    weight_c: Tensor, weight_b: Tensor, turn: Tensor, dt_bias: Tensor, first: Tensor, second: Tensor | None,
    valid: Tensor, epsilon: float, turns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of c, b, x, dt and of the three parameters."""
    batch, extent, width = c.shape
    size, steps, text = weight_c.shape[0], dt_bias.shape[0], valid.shape[1]
    c, b, dt = (u.contiguous() for u in (c, b, dt))
    grads = [u.contiguous() for u in (grad_c, grad_b, grad_x, grad_dt)]
    outs = [torch.empty_like(c), torch.empty_like(b), grad_x.new_empty(c.shape), torch.empty_like(dt)]
    tiles = triton.cdiv(batch * extent, TILE)
    parts = [c.new_empty((tiles, n), dtype=torch.float32) for n in (size, size, steps)]
    _compose_back[(tiles,)](
        *grads, c, b, dt, weight_c, weight_b, torch.view_as_real(turn), dt_bias, first,
        first if second is None else second, valid, *outs, *parts, batch * extent, extent, text, epsilon,
        width // size, size, block_of(width // size), steps, dt.shape[2], block_of(dt.shape[2]), turns,
        second is not None, TILE, num_warps=_WARPS_BACK,
    )  # fmt: skip
    of_c, of_b, of_dt = (part.sum(0) for part in parts)
    return (*outs, of_c.to(weight_c.dtype), of_b.to(weight_b.dtype), of_dt.to(dt_bias.dtype))  # type: ignore[return-value]


@_gradient.register_fake
def _(
    grad_c, grad_b, grad_x, grad_dt, c, b, dt, weight_c, weight_b, turn, dt_bias, first, second, valid, epsilon, turns
):  # fmt: skip
    like = (c, b, c, dt, weight_c, weight_b, dt_bias)
    dtypes = (c, b, grad_x, dt, weight_c, weight_b, dt_bias)
    return tuple(u.new_empty(u.shape, dtype=d.dtype) for u, d in zip(like, dtypes, strict=True))


def _keep(ctx, inputs, output):
    c, b, _, dt, weight_c, weight_b, turn, dt_bias, _, _, first, second, valid, ctx.epsilon, ctx.turns = inputs
    # Not the parameters themselves, whose data a sharded optimizer takes away before backward.
    weight_c, weight_b, dt_bias = (u.detach() for u in (weight_c, weight_b, dt_bias))
    ctx.save_for_backward(c, b, dt, weight_c, weight_b, turn, dt_bias, first, second, valid)


def _back(ctx, *grads):
    found = _gradient(*grads, *ctx.saved_tensors, ctx.epsilon, ctx.turns)
    c, b, x, dt, weight_c, weight_b, bias = found
    return c, b, x, dt, weight_c, weight_b, None, bias, None, None, None, None, None, None, None


compose.register_autograd(_back, setup_context=_keep)


@operator("m4v::compose_convolved")
def compose_convolved(
    c: Tensor, b: Tensor, x: Tensor, dt: Tensor, weight_c: Tensor, weight_b: Tensor, turn: Tensor, dt_bias: Tensor,
    source: Tensor, real: Tensor, epsilon: float, turns: bool, weight: Tensor, bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`compose` with `convolve_silu` of its x by taps (D, width) and bias (D,), to the bit; the composed x itself is
    never written. No gradient."""
    to_x = source.new_empty((x.shape[0], source.shape[0] // x.shape[0]), dtype=torch.int32)
    to_c, to_b, sizes = _composed(
        c, b, x, dt, weight_c, weight_b, turn, dt_bias, source, real, to_x, epsilon, turns, values=False
    )
    return to_c, to_b, convolve_gathered(x, to_x, weight, bias), sizes


@compose_convolved.register_fake
def _(c, b, x, dt, weight_c, weight_b, turn, dt_bias, source, real, epsilon, turns, weight, bias):
    batch, _, width = x.shape
    length = source.shape[0] // batch
    sizes = dt.new_empty((batch, length, dt_bias.shape[0]), dtype=torch.float32)
    return (*(u.new_empty((batch, length, width)) for u in (c, b, x)), sizes)
