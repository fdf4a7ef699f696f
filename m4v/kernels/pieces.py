# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The temporal branch's pooling and its attention between whole pieces, and the way of its output back to tokens.

Every image token belongs to one temporal token, so pooling and its adjoint read the same lists of `members`: sums in
a fixed order, no atomics. Pieces are compared with matrix products that keep their scores in float32.
"""

from __future__ import annotations

import torch
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


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """The batched product in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload, no-any-return]
    return torch.bmm(a.float(), b.float())


def _columns(tensors: tuple[Tensor, ...], masks: list[Tensor], places: list[int]):
    """Per column its mask, its pieces (b heads, pieces, places head size) of every tensor, where its scores lie."""
    rows = scores = 0
    for mask, count in zip(masks, places, strict=True):
        pieces = mask.shape[0]
        mine = [
            u[:, :, rows : rows + pieces * count].view(u.shape[0] * u.shape[1], pieces, count * u.shape[3])
            for u in tensors
        ]
        yield mask, count, mine, slice(scores, scores + pieces * pieces)
        rows, scores = rows + pieces * count, scores + pieces * pieces


@operator("m4v::attend_pieces")
def attend_pieces(
    q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], places: list[int]
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention between pieces of each column: q, k, v (b, heads, T, head size), whose rows are the places of piece
    0, 1, ... of column 0, 1, ... `masks`: bool (pieces, pieces) of each column, what sees what; `places` of a piece.
    One score sums over a head's channels at all places, hence its scale.

    Returns the same shape, and the weights (b heads, sum of pieces^2) for the gradient.
    """
    out = torch.empty_like(q)
    weights = q.new_empty((q.shape[0] * q.shape[1], sum(mask.numel() for mask in masks)))
    for mask, count, (mine_q, mine_k, mine_v, mine), at in _columns((q, k, v, out), masks, places):
        scores = _exact(mine_q, mine_k.mT).mul_((q.shape[3] * count) ** -0.5).masked_fill_(~mask, float("-inf"))
        weight = weights[:, at].view(-1, *mask.shape)
        weight.copy_(scores.softmax(-1))
        torch.bmm(weight, mine_v, out=mine)
    return out, weights


@attend_pieces.register_fake
def _(q, k, v, masks, places):
    return torch.empty_like(q), q.new_empty((q.shape[0] * q.shape[1], sum(mask.numel() for mask in masks)))


@operator("m4v::attend_pieces_back")
def _attend_gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, masks: list[Tensor], places: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    outs = tuple(torch.empty_like(u) for u in (q, k, v))
    for mask, count, mine, at in _columns((grad, q, k, v, *outs), masks, places):
        incoming, mine_q, mine_k, mine_v, to_q, to_k, to_v = mine
        weight = weights[:, at].view(-1, *mask.shape)
        torch.bmm(weight.mT, incoming, out=to_v)
        change, exact = _exact(incoming, mine_v.mT), weight.float()
        change = exact * (change - (change * exact).sum(-1, keepdim=True)) * (q.shape[3] * count) ** -0.5
        change = change.to(q.dtype)
        torch.bmm(change, mine_k, out=to_q)
        torch.bmm(change.mT, mine_q, out=to_k)
    return outs  # type: ignore[return-value]


@_attend_gradient.register_fake
def _(grad, q, k, v, weights, masks, places):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_attended(ctx, inputs, output):
    q, k, v, masks, ctx.places = inputs
    ctx.save_for_backward(q, k, v, output[1], *masks)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _attended_back(ctx, grad, _):
    q, k, v, weights, *masks = ctx.saved_tensors
    return (*_attend_gradient(grad.contiguous(), q, k, v, weights, masks, ctx.places), [None] * len(masks), None)


attend_pieces.register_autograd(_attended_back, setup_context=_keep_attended)
