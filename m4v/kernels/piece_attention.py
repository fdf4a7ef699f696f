# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The temporal branch's attention between whole pieces of the columns, as Triton kernels that take all columns at once.

A column's pieces are few and their vectors (all places of a head) are long, so scores are sums over parts of the
places: every program leaves its part, the softmax adds them up in order. Scores and softmax are float32; no atomics.

Weights and their changes stay float32 in their products with bfloat16 values: what rounding takes from a weight shows
in every channel of a piece alike, and the gradient of a score, a small difference of sums over 10^4 to 10^5 channels,
is then off by several percent.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import block_of
from m4v.kernels.operators import operator

LARGEST = 64  # pieces of a column that the kernels take
FIELDS = tl.constexpr(4)  # of a column: its first row, pieces, places of a piece, where its scores begin
_SPAN, _STEP = 1024, 64  # channels of one program's part of the scores, and of one of its products
_RESULTS = {2: 8192, 4: 2048}  # values of one tile of the results by their size, of no more than 256 channels
_WARPS, _LINES = 4, 16  # pieces whose softmax one program makes
_ANY = ("tokens", "area")  # one compilation serves every layout


@triton.jit
def _rows(table, column, head, tokens, size: tl.constexpr, block: tl.constexpr):
    """Where the pieces of a column begin in (b heads, tokens, size), how many they are, and their channels."""
    begin, pieces = tl.load(table + column * FIELDS), tl.load(table + column * FIELDS + 1)
    places = tl.load(table + column * FIELDS + 2)
    row = head * tokens + begin + tl.arange(0, block) * places
    return row * size, pieces, places * size


@triton.jit
def _scores_at(table, column, line, piece, pieces, area, block: tl.constexpr):
    """Where the scores of some pieces of a column lie in (lines, area), and which of a whole block there are."""
    other = tl.arange(0, block)
    place = line * area + tl.load(table + column * FIELDS + 3) + piece[:, None] * pieces + other[None]
    return place, (piece < pieces)[:, None] & (other < pieces)[None]


@triton.jit(do_not_specialize=_ANY)
def _products(
    a, b, table, parts, tokens, area, size: tl.constexpr, block: tl.constexpr, span: tl.constexpr, step: tl.constexpr
):  # fmt: skip
    """Products of all pairs of pieces of `a` and `b`, over a part of their channels."""
    part, column, head = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, pieces, width = _rows(table, column, head, tokens, size, block)
    if part * span < width:
        there = (tl.arange(0, block) < pieces)[:, None]
        total = tl.zeros((block, block), tl.float32)
        for first in range(0, span, step):
            channel = part * span + first + tl.arange(0, step)
            inside = there & (channel < width)[None]
            left = tl.load(a + row[:, None] + channel[None], mask=inside, other=0.0)
            right = tl.load(b + row[:, None] + channel[None], mask=inside, other=0.0)
            total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
        piece = tl.arange(0, block)
        place, real = _scores_at(table, column, head * tl.num_programs(0) + part, piece, pieces, area, block)
        tl.store(parts + place, total, mask=real)


@triton.jit
def _added(
    parts, table, column, head, piece, area, splits, pieces, width, rows: tl.constexpr, block: tl.constexpr,
    span: tl.constexpr,
):  # fmt: skip
    """The scores of some pieces: their parts, added in order."""
    total = tl.zeros((rows, block), tl.float32)
    part = 0
    while part * span < width:
        place, real = _scores_at(table, column, head * splits + part, piece, pieces, area, block)
        total += tl.load(parts + place, mask=real, other=0.0)
        part += 1
    return total


@triton.jit(do_not_specialize=(*_ANY, "splits"))
def _softmax(
    parts, seen, table, weights, tokens, area, splits, size: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
    span: tl.constexpr,
):  # fmt: skip
    """Weights of some pieces of a column from the parts of their scores."""
    column, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    piece = tl.program_id(0) * rows + tl.arange(0, rows)
    _, pieces, width = _rows(table, column, head, tokens, size, block)
    score = _added(parts, table, column, head, piece, area, splits, pieces, width, rows, block, span)
    place, real = _scores_at(table, column, head * 0, piece, pieces, area, block)
    sees = tl.load(seen + place, mask=real, other=0).to(tl.int32) != 0
    score = tl.where(sees | (piece >= pieces)[:, None], score * tl.rsqrt(width * 1.0), float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    place, real = _scores_at(table, column, head, piece, pieces, area, block)
    tl.store(weights + place, weight, mask=real)


@triton.jit(do_not_specialize=(*_ANY, "splits"))
def _softmax_back(
    parts, weights, table, changes, tokens, area, splits, size: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
    span: tl.constexpr,
):  # fmt: skip
    """Gradients of some pieces' products of q and k from the parts of those of their weights."""
    column, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    piece = tl.program_id(0) * rows + tl.arange(0, rows)
    _, pieces, width = _rows(table, column, head, tokens, size, block)
    change = _added(parts, table, column, head, piece, area, splits, pieces, width, rows, block, span)
    place, real = _scores_at(table, column, head, piece, pieces, area, block)
    weight = tl.load(weights + place, mask=real, other=0.0)
    along = tl.sum(change * weight, axis=1)
    change = weight * (change - along[:, None]) * tl.rsqrt(width * 1.0)
    tl.store(changes + place, change, mask=real)


@triton.jit
def _weighted(weight, given, out, place, inside, whole: tl.constexpr):
    """`weight`, float32, times the pieces of `given`; if not `whole`, rounded to their format before."""
    value = tl.load(given + place, mask=inside, other=0.0)
    rounded = weight.to(value.dtype)
    result = tl.dot(rounded, value, input_precision="ieee")
    if whole and value.dtype != tl.float32:
        rest = weight - rounded.to(tl.float32)
        result = tl.dot(rest.to(value.dtype), value, result, input_precision="ieee")
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_ANY)
def _apply(
    weights, v, table, out, tokens, area, size: tl.constexpr, block: tl.constexpr, step: tl.constexpr
):  # fmt: skip
    """Some channels of a column's results."""
    column, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, pieces, width = _rows(table, column, head, tokens, size, block)
    channel = tl.program_id(0) * step + tl.arange(0, step)
    piece = tl.arange(0, block)
    at, real = _scores_at(table, column, head, piece, pieces, area, block)
    inside = (piece < pieces)[:, None] & (channel < width)[None]
    weight = tl.load(weights + at, mask=real, other=0.0)
    _weighted(weight, v, out, row[:, None] + channel[None], inside, True)


@triton.jit(do_not_specialize=_ANY)
def _apply_back(
    weights, changes, grad, q, k, table, to_q, to_k, to_v, tokens, area, size: tl.constexpr, block: tl.constexpr,
    step: tl.constexpr,
):  # fmt: skip
    """Some channels of a column's gradients."""
    column, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, pieces, width = _rows(table, column, head, tokens, size, block)
    channel = tl.program_id(0) * step + tl.arange(0, step)
    piece = tl.arange(0, block)
    at, real = _scores_at(table, column, head, piece, pieces, area, block)
    inside = (piece < pieces)[:, None] & (channel < width)[None]
    place = row[:, None] + channel[None]
    weight = tl.load(weights + at, mask=real, other=0.0)
    _weighted(tl.trans(weight), grad, to_v, place, inside, False)
    change = tl.load(changes + at, mask=real, other=0.0)
    _weighted(change, k, to_q, place, inside, True)
    _weighted(tl.trans(change), q, to_k, place, inside, True)


def _sizes(x: Tensor, pieces: list[int], places: list[int]) -> tuple[int, int, int, int]:
    """Heads of all samples, scores of one, the block that holds a column's pieces, the most channels of a piece."""
    area = sum(count * count for count in pieces)
    return x.shape[0] * x.shape[1], area, max(16, block_of(max(pieces))), max(places) * x.shape[3]


def _parts(a: Tensor, b: Tensor, table: Tensor, pieces: list[int], places: list[int]) -> Tensor:
    """Parts (b heads, splits, area) of the products of all pairs of pieces of a column."""
    heads, area, block, width = _sizes(a, pieces, places)
    parts = a.new_empty((heads, triton.cdiv(width, _SPAN), area), dtype=torch.float32)
    _products[parts.shape[1], len(pieces), heads](
        a, b, table, parts, a.shape[2], area, a.shape[3], block, _SPAN, _STEP, num_warps=_WARPS
    )
    return parts


def _step(x: Tensor, block: int) -> int:
    """Channels of one tile of the results."""
    return min(256, _RESULTS[x.element_size()] // block)


@operator("m4v::attend_pieces")
def attend_pieces(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, table: Tensor, pieces: list[int], places: list[int]
) -> tuple[Tensor, Tensor]:
    """Attention between pieces of each column: q, k, v (b, heads, T, head size), whose rows are the places of piece
    0, 1, ... of column 0, 1, ... `seen` (sum of pieces^2) bool: what sees what, at least itself, in each column;
    `table` (columns, 4) int32 as `FIELDS` says; `pieces` of a column, `places` of each of them. One score sums over a
    head's channels at all places, hence its scale.

    Returns the same shape, and the weights (b heads, sum of pieces^2) in float32 for the gradient.
    """
    q, k, v = (u.contiguous() for u in (q, k, v))
    heads, area, block, width = _sizes(q, pieces, places)
    out, weights = torch.empty_like(q), q.new_empty((heads, area), dtype=torch.float32)
    if max(pieces) > LARGEST:
        _attend_large(q, k, v, seen, pieces, places, out, weights)
        return out, weights
    parts, size, step = _parts(q, k, table, pieces, places), q.shape[3], _step(q, block)
    _softmax[block // _LINES, len(pieces), heads](
        parts, seen, table, weights, q.shape[2], area, parts.shape[1], size, _LINES, block, _SPAN, num_warps=_WARPS
    )
    _apply[triton.cdiv(width, step), len(pieces), heads](
        weights, v, table, out, q.shape[2], area, size, block, step, num_warps=_WARPS
    )
    return out, weights


@attend_pieces.register_fake
def _(q, k, v, seen, table, pieces, places):
    like = q.new_empty(q.shape)
    return like, q.new_empty((q.shape[0] * q.shape[1], seen.shape[0]), dtype=torch.float32)


@operator("m4v::attend_pieces_back")
def _gradient(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, table: Tensor, pieces: list[int],
    places: list[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad, q, k, v = (u.contiguous() for u in (grad, q, k, v))
    outs = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    if max(pieces) > LARGEST:
        _gradient_large(grad, q, k, v, weights, pieces, places, outs)
        return outs
    heads, area, block, width = _sizes(q, pieces, places)
    parts, changes = _parts(grad, v, table, pieces, places), torch.empty_like(weights)
    size, step = q.shape[3], _step(q, block)
    _softmax_back[block // _LINES, len(pieces), heads](
        parts, weights, table, changes, q.shape[2], area, parts.shape[1], size, _LINES, block, _SPAN, num_warps=_WARPS
    )
    _apply_back[triton.cdiv(width, step), len(pieces), heads](
        weights, changes, grad, q, k, table, *outs, q.shape[2], area, size, block, step, num_warps=_WARPS
    )
    return outs


@_gradient.register_fake
def _(grad, q, k, v, weights, table, pieces, places):
    return tuple(u.new_empty(u.shape) for u in (q, k, v))


def _keep(ctx, inputs, output):
    q, k, v, _, table, ctx.pieces, ctx.places = inputs
    ctx.save_for_backward(q, k, v, output[1], table)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _back(ctx, grad, _):
    q, k, v, weights, table = ctx.saved_tensors
    return (*_gradient(grad, q, k, v, weights, table, ctx.pieces, ctx.places), None, None, None, None)


attend_pieces.register_autograd(_back, setup_context=_keep)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """The batched product in float32, which autocast would round."""
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype != torch.float32:
            return torch.bmm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload, no-any-return]
        return torch.bmm(a.float(), b.float())


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """Float32 weights times values, in float32: with half formats two products, of what they hold and of the rest."""
    rounded = weight.to(value.dtype)
    found = _exact(rounded, value)
    return found if rounded.dtype == weight.dtype else found + _exact((weight - rounded).to(value.dtype), value)


def _columns(tensors: tuple[Tensor, ...], pieces: list[int], places: list[int]):
    """Per column its places, where its scores lie, and its pieces (b heads, pieces, channels) of every tensor."""
    rows = scores = 0
    for number, count in zip(pieces, places, strict=True):
        here = slice(rows, rows + number * count)
        mine = [u[:, :, here].view(u.shape[0] * u.shape[1], number, count * u.shape[3]) for u in tensors]
        yield number, slice(scores, scores + number * number), mine
        rows, scores = here.stop, scores + number * number


def _attend_large(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, pieces: list[int], places: list[int], out: Tensor, weights: Tensor
) -> None:
    """What the kernels do, by torch's products: for columns that they do not take."""
    for number, at, (mine_q, mine_k, mine_v, mine) in _columns((q, k, v, out), pieces, places):
        scores = _exact(mine_q, mine_k.mT).mul_(mine_q.shape[2] ** -0.5)
        weight = weights[:, at].view(-1, number, number)
        weight.copy_(scores.masked_fill_(~seen[at].view(number, number), float("-inf")).softmax(-1))
        mine.copy_(_times(weight, mine_v))


def _gradient_large(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, pieces: list[int], places: list[int],
    outs: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    for number, at, mine in _columns((grad, q, k, v, *outs), pieces, places):
        incoming, mine_q, mine_k, mine_v, to_q, to_k, to_v = mine
        weight = weights[:, at].view(-1, number, number)
        torch.bmm(weight.mT.to(incoming.dtype), incoming, out=to_v)
        change = _exact(incoming, mine_v.mT)
        change = weight * (change - (change * weight).sum(-1, keepdim=True)) * mine_q.shape[2] ** -0.5
        to_q.copy_(_times(change, mine_k))
        to_k.copy_(_times(change.mT, mine_q))
