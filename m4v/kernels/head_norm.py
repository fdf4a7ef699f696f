# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""RMSNorm and rotation of an attention's heads as one Triton kernel, for one stream or [text, image] of two, in token
order or with the heads outermost; the two streams are written into one buffer instead of being concatenated."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.column_sums import LAYOUT_SIZES, TILE, block_of
from m4v.kernels.head_rows import normed, normed_back, turned
from m4v.kernels.operators import operator

_WARPS, _WARPS_BACK = 4, 8


@triton.jit
def _row(image, text, image_row, text_row, is_text, place, mask, width, joint: tl.constexpr):
    """A token's row, from the stream that it belongs to."""
    value = tl.load(image + image_row * width + place, mask=mask & (is_text == 0), other=0.0).to(tl.float32)
    if joint:
        value += tl.load(text + text_row * width + place, mask=mask & is_text, other=0.0).to(tl.float32)
    return value


@triton.jit
def _weight(image, text, is_text, channel, joint: tl.constexpr):
    """The norm's weight of a token's stream."""
    value = tl.load(image + channel).to(tl.float32)
    if joint:
        value = tl.where(is_text, tl.load(text + channel).to(tl.float32), value)
    return value


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _heads(
    q, k, v, text_q, text_k, text_v, weight_q, weight_k, text_weight_q, text_weight_k, turn, to_q, to_k, to_v,
    tokens, opening, stride_t, stride_h, epsilon, heads: tl.constexpr, size: tl.constexpr,
    heads_block: tl.constexpr, joint: tl.constexpr, turns: tl.constexpr, values: tl.constexpr,
):  # fmt: skip
    """One token, of which the first `opening` are text."""
    number = tl.program_id(0).to(tl.int64)
    batch, token = number // tokens, number % tokens
    is_text = token < opening
    image_row, text_row = batch * (tokens - opening) + token - opening, batch * opening + token
    head, channel = tl.arange(0, heads_block), tl.arange(0, size)
    place, inside, width = head[:, None] * size + channel[None], (head < heads)[:, None], heads * size
    target = batch * tokens * width + token * stride_t + head[:, None] * stride_h + channel[None]
    of_q = _row(q, text_q, image_row, text_row, is_text, place, inside, width, joint)
    of_k = _row(k, text_k, image_row, text_row, is_text, place, inside, width, joint)
    of_q = normed(of_q, epsilon, size)[0] * _weight(weight_q, text_weight_q, is_text, channel, joint)[None]
    of_k = normed(of_k, epsilon, size)[0] * _weight(weight_k, text_weight_k, is_text, channel, joint)[None]
    if turns:
        of_q = turned(of_q, turn + token * size, 1.0, heads_block, size)
        of_k = turned(of_k, turn + token * size, 1.0, heads_block, size)
    tl.store(to_q + target, of_q.to(to_q.dtype.element_ty), mask=inside)
    tl.store(to_k + target, of_k.to(to_k.dtype.element_ty), mask=inside)
    if values:
        of_v = _row(v, text_v, image_row, text_row, is_text, place, inside, width, joint)
        tl.store(to_v + target, of_v.to(to_v.dtype.element_ty), mask=inside)


@triton.jit
def _one_back(
    grad, given, weight, turn, place_in, row, place, mask, epsilon, heads_block: tl.constexpr, size: tl.constexpr,
    turns: tl.constexpr,
):  # fmt: skip
    """Gradients of one row before turn and norm, and of the weight (by head)."""
    incoming = tl.load(grad + place_in, mask=mask, other=0.0).to(tl.float32)
    if turns:
        incoming = turned(incoming, turn, -1.0, heads_block, size)
    value = tl.load(given + row + place, mask=mask, other=0.0).to(tl.float32)
    return normed_back(incoming, value, weight, epsilon, size)


@triton.jit(do_not_specialize=LAYOUT_SIZES)
def _heads_back(
    grad_q, grad_k, grad_v, q, k, weight_q, weight_k, turn, to_q, to_k, to_v, parts, tokens, begin, count,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, epsilon, heads: tl.constexpr, size: tl.constexpr,
    heads_block: tl.constexpr, turns: tl.constexpr, values: tl.constexpr, tile_rows: tl.constexpr,
):  # fmt: skip
    """A tile of one stream, whose `count` tokens begin at `begin` of all `tokens`; its part of the weights' sums."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head, channel = tl.arange(0, heads_block), tl.arange(0, size)
    place, inside, width = head[:, None] * size + channel[None], (head < heads)[:, None], heads * size
    scale_q, scale_k = tl.load(weight_q + channel).to(tl.float32), tl.load(weight_k + channel).to(tl.float32)
    sum_q = tl.zeros((heads_block, size), tl.float32)
    sum_k = tl.zeros((heads_block, size), tl.float32)
    for number in range(tile_rows):
        own = tile * tile_rows + number
        mask = inside & (own < count)
        token = (begin + own).to(tl.int64)
        row, angle = (batch * count + own) * width, turn + tl.minimum(token, tokens - 1) * size
        at_q = batch * q_b + token * q_t + head[:, None] * q_h + channel[None]
        at_k = batch * k_b + token * k_t + head[:, None] * k_h + channel[None]
        of_q, part_q = _one_back(grad_q, q, scale_q, angle, at_q, row, place, mask, epsilon, heads_block, size, turns)
        of_k, part_k = _one_back(grad_k, k, scale_k, angle, at_k, row, place, mask, epsilon, heads_block, size, turns)
        tl.store(to_q + row + place, of_q.to(to_q.dtype.element_ty), mask=mask)
        tl.store(to_k + row + place, of_k.to(to_k.dtype.element_ty), mask=mask)
        sum_q += part_q
        sum_k += part_k
        if values:
            at_v = batch * v_b + token * v_t + head[:, None] * v_h + channel[None]
            tl.store(
                to_v + row + place, tl.load(grad_v + at_v, mask=mask, other=0.0).to(to_v.dtype.element_ty), mask=mask
            )
    part = parts + (batch * tl.num_programs(0) + tile) * 2 * size + channel
    tl.store(part, tl.sum(sum_q, axis=0))
    tl.store(part + size, tl.sum(sum_k, axis=0))


@operator("m4v::norm_heads")
def norm_heads(
    q: Tensor, k: Tensor, v: Tensor | None, text: list[Tensor], weights: list[Tensor], turn: Tensor | None,
    outer_heads: bool, epsilon: float,
) -> list[Tensor]:  # fmt: skip
    """Normed and turned q and k, and v as it is, of [text, image] tokens.

    q, k, v (b, L, D) are the image's; `text` is empty or has its q, k, v (b, slots, D); `weights` (head size,) are
    RMSNorm's of q and k, then of the text's. `turn` (tokens, head size / 2) complex64 or None. Returns q, k and, if
    given, v as (b, tokens, heads, head size), with `outer_heads` as (b, heads, tokens, head size).
    """
    batch, count, width = q.shape
    size, opening = weights[0].shape[0], text[0].shape[1] if text else 0
    tokens, heads = opening + count, width // size
    given = [u.contiguous() for u in (q, k, q if v is None else v, *(text or [q, k, q]))]
    shape = (batch, heads, tokens, size) if outer_heads else (batch, tokens, heads, size)
    outs = [u.new_empty(shape) for u in ((q, k) if v is None else (q, k, v))]
    strides = (size, tokens * size) if outer_heads else (width, size)
    _heads[(batch * tokens,)](
        *given, *weights, *(() if text else weights), q if turn is None else torch.view_as_real(turn),
        *outs, *(() if v is not None else (outs[0],)), tokens, opening, *strides, epsilon, heads, size,
        block_of(heads), bool(text), turn is not None, v is not None, num_warps=_WARPS,
    )  # fmt: skip
    return outs


@norm_heads.register_fake
def _(q, k, v, text, weights, turn, outer_heads, epsilon):
    size, tokens = weights[0].shape[0], q.shape[1] + (text[0].shape[1] if text else 0)
    heads = q.shape[2] // size
    shape = (q.shape[0], heads, tokens, size) if outer_heads else (q.shape[0], tokens, heads, size)
    return [u.new_empty(shape) for u in ((q, k) if v is None else (q, k, v))]


@operator("m4v::norm_heads_back")
def _gradient(
    grads: list[Tensor], q: Tensor, k: Tensor, weights: list[Tensor], turn: Tensor | None, outer_heads: bool,
    epsilon: float, begin: int, tokens: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of one stream's q, k, v if there is one, and weights; the stream begins at token `begin`."""
    batch, count, width = q.shape
    size = weights[0].shape[0]
    q, k = q.contiguous(), k.contiguous()
    outs = [torch.empty_like(q) for _ in grads]
    tiles = triton.cdiv(count, TILE)
    parts = q.new_empty((batch * tiles, 2 * size), dtype=torch.float32)
    grads = [u if u.stride(3) == 1 else u.contiguous() for u in grads]
    strides = [u.stride(n) for u in (*grads, grads[0])[:3] for n in ((0, 2, 1) if outer_heads else (0, 1, 2))]
    _heads_back[tiles, batch](
        *(*grads, grads[0])[:3], q, k, *weights, q if turn is None else torch.view_as_real(turn),
        *(*outs, outs[0])[:3], parts, tokens, begin, count, *strides, epsilon, width // size, size,
        block_of(width // size), turn is not None, len(grads) == 3, TILE, num_warps=_WARPS_BACK,
    )  # fmt: skip
    sums = parts.sum(0)
    return [*outs, sums[:size].to(weights[0].dtype, copy=True), sums[size:].to(weights[1].dtype, copy=True)]


@_gradient.register_fake
def _(grads, q, k, weights, turn, outer_heads, epsilon, begin, tokens):
    return [*(torch.empty_like(q) for _ in grads), *(torch.empty_like(w) for w in weights)]


def _keep(ctx, inputs, output):
    q, k, _, text, weights, turn, ctx.outer_heads, ctx.epsilon = inputs
    ctx.streams = 2 if text else 1
    # Not the parameters themselves, whose data a sharded optimizer takes away before backward.
    ctx.save_for_backward(q, k, *text[:2], *(u.detach() for u in weights), turn)


def _back(ctx, grads):
    saved, streams = ctx.saved_tensors, ctx.streams
    weights, turn = saved[2 * streams : 4 * streams], saved[-1]
    begin, found = 0, []
    tokens = grads[0].shape[2 if ctx.outer_heads else 1]
    for number in reversed(range(streams)):  # the text stands before the image
        q, k = saved[2 * number : 2 * number + 2]
        mine = list(weights[2 * number : 2 * number + 2])
        found.append(_gradient(list(grads), q, k, mine, turn, ctx.outer_heads, ctx.epsilon, begin, tokens))
        begin += q.shape[1]
    image, of_text = found[-1], found[0] if streams == 2 else None
    of_v = image[2] if len(grads) == 3 else None
    of_weights = [*image[-2:], *(of_text[-2:] if of_text else ())]
    return image[0], image[1], of_v, of_text[:3] if of_text else [], of_weights, None, None, None


norm_heads.register_autograd(_back, setup_context=_keep)
