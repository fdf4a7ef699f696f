# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The temporal branch's pooling, and the way of its output back to tokens (`piece_attention` is between them).

Every image token belongs to one temporal token, so pooling and its adjoint read the same lists of `members`: sums in
a fixed order, no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import LAYOUT_SIZES, block_of
from m4v.kernels.operators import operator

_WARPS = 4


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _pool(x, bounds, members, out, extent, opening, pieces, width: tl.constexpr, block: tl.constexpr):
    """Mean of the image tokens of one temporal token."""
    number = tl.program_id(0).to(tl.int64)
    batch, piece = number // pieces, number % pieces
    begin, end = tl.load(bounds + piece), tl.load(bounds + piece + 1)
    channel = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    place = begin
    while place < end:
        row = batch * extent + opening + tl.load(members + place)
        total += tl.load(x + row * width + channel, mask=channel < width, other=0.0).to(tl.float32)
        place += 1
    mean = total / (end - begin)
    tl.store(out + number * width + channel, mean.to(out.dtype.element_ty), mask=channel < width)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _pool_back(grad, bounds, back, out, tokens, extent, opening, pieces, width: tl.constexpr, block: tl.constexpr):
    """Gradient of one packed row: its share of its temporal token's; zero where there is none."""
    number = tl.program_id(0).to(tl.int64)
    batch, token = number // extent, number % extent
    image = (token >= opening) & (token < tokens)
    piece = tl.load(back + token - opening, mask=image, other=0).to(tl.int64)
    count = tl.load(bounds + piece + 1) - tl.load(bounds + piece)
    channel = tl.arange(0, block)
    given = (batch * pieces + piece) * width + channel
    value = tl.load(grad + given, mask=(channel < width) & image, other=0.0).to(tl.float32) / count
    tl.store(out + number * width + channel, value.to(out.dtype.element_ty), mask=channel < width)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _spread_back(
    grad, scale, bounds, members, out, tokens, opening, pieces, grad_width, width: tl.constexpr, block: tl.constexpr,
    size: tl.constexpr,
):  # fmt: skip
    """Gradient of one temporal token, in (b, heads, pieces, head size): the sum over the tokens that read it."""
    number = tl.program_id(0).to(tl.int64)
    batch, piece = number // pieces, number % pieces
    end = tl.load(bounds + piece + 1)
    channel = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    place = tl.load(bounds + piece)
    while place < end:
        row = batch * tokens + opening + tl.load(members + place)
        total += tl.load(grad + row * grad_width + channel, mask=channel < width, other=0.0).to(tl.float32)
        place += 1
    total *= tl.load(scale).to(tl.float32)
    target = (batch * (width // size) + channel // size) * pieces * size + piece * size + channel % size
    tl.store(out + target, total.to(out.dtype.element_ty), mask=channel < width)


def spread_back(grad: Tensor, scale: Tensor, bounds: Tensor, members: Tensor, out: Tensor) -> Tensor:
    """Fill `out` (b, heads, pieces, head size) with the gradient of what `scale` times its rows were added to: the
    last tokens of grad (b, L, at least D channels), the first D of them."""
    batch, heads, pieces, size = out.shape
    _spread_back[(batch * pieces,)](
        grad, scale, bounds, members, out, grad.shape[1], grad.shape[1] - members.shape[0], pieces, grad.shape[2],
        heads * size, block_of(heads * size), size, num_warps=_WARPS,
    )  # fmt: skip
    return out


@operator("m4v::pool_pieces")
def pool_pieces(x: Tensor, bounds: Tensor, members: Tensor, back: Tensor, opening: int) -> Tensor:
    """Temporal tokens (b, T, D), each the mean of its image tokens in x (b, E, D), where those begin at `opening`.

    `members[bounds[t]:bounds[t + 1]]` (int32) are the image tokens of temporal token t, `back` names the temporal
    token of each image token.
    """
    batch, extent, width = x.shape
    pieces = bounds.shape[0] - 1
    x = x.contiguous()
    out = x.new_empty((batch, pieces, width))
    _pool[(batch * pieces,)](x, bounds, members, out, extent, opening, pieces, width, block_of(width), num_warps=_WARPS)
    return out


@pool_pieces.register_fake
def _(x, bounds, members, back, opening):
    return x.new_empty((x.shape[0], bounds.shape[0] - 1, x.shape[2]))


@operator("m4v::pool_pieces_back")
def _pool_gradient(grad: Tensor, bounds: Tensor, back: Tensor, opening: int, extent: int) -> Tensor:
    batch, pieces, width = grad.shape
    out = grad.new_empty((batch, extent, width))
    _pool_back[(batch * extent,)](
        grad, bounds, back, out, opening + back.shape[0], extent, opening, pieces, width, block_of(width),
        num_warps=_WARPS,
    )  # fmt: skip
    return out


@_pool_gradient.register_fake
def _(grad, bounds, back, opening, extent):
    return grad.new_empty((grad.shape[0], extent, grad.shape[2]))


def _keep_pool(ctx, inputs, output):
    x, bounds, _, back, ctx.opening = inputs
    ctx.extent = x.shape[1]
    ctx.save_for_backward(bounds, back)


def _pool_gradients(ctx, grad):
    bounds, back = ctx.saved_tensors
    return _pool_gradient(grad.contiguous(), bounds, back, ctx.opening, ctx.extent), None, None, None, None


pool_pieces.register_autograd(_pool_gradients, setup_context=_keep_pool)
