# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""The Mamba-2 scan without gradients as Triton kernels: a program walks the chunks of a segment with the state on chip.

A chunk's own state is never written; one for each segment is. So the scan reads x and B twice, C once, and writes y,
which is all that it moves but for 1/`chunks` of what chunk by chunk takes in states. The state is float32 throughout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from m4v.kernels.operators import operator
from m4v.kernels.ssd_arguments import constants_of, strides_of
from m4v.kernels.ssd_configs import SEGMENTS
from m4v.kernels.ssd_forward import _pass_states, load_rows, steps_and_decays


@triton.jit
def _sequences(column, start, first, length, chunk: tl.constexpr):
    """Sequence of each token of a chunk, of its last token, and of the token before it (its first at the start).
    `start` is the row of the sample's first token; a chunk behind the end has those of the last token."""
    token = first + tl.arange(0, chunk)
    own = tl.load(column + start + token, mask=token < length, other=-1)
    last = tl.load(column + start + tl.minimum(first + chunk, length) - 1)
    before = tl.load(column + start + tl.maximum(tl.minimum(first, length) - 1, 0))
    return own, last, before


@triton.jit
def _ahead(carried, keys, values, weight, factor, precision: tl.constexpr):
    """The state (N, P) behind a chunk, float32."""
    weighted = (keys * weight[:, None]).to(keys.dtype)
    return tl.dot(tl.trans(weighted), values, carried * factor, input_precision=precision)


@triton.jit(do_not_specialize=("length", "heads", "segments"))
def _segment_states(
    keys, values, dt, bias, a, column, states, decay, length, heads, segments,
    keys_batch, keys_row, keys_head, values_batch, values_row, values_head,
    chunk: tl.constexpr, chunks: tl.constexpr, state: tl.constexpr, size: tl.constexpr, has_bias: tl.constexpr,
    softplus: tl.constexpr, has_column: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """What a segment's tokens leave in the state behind it, float32 (N, P), and what is left of the state before it."""
    head, number, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    keys += batch * keys_batch + head * keys_head
    values += batch * values_batch + head * values_head
    carried = tl.zeros((state, size), tl.float32)
    left = tl.full((), 1.0, tl.float32)
    for i in range(chunks):
        first = (number * chunks + i) * chunk
        at = first.to(tl.int64)
        step, _, running, whole = steps_and_decays(
            dt, bias, a, batch * length + first, first, length, head, heads, chunk, has_bias, softplus
        )  # fmt: skip
        weight, factor = step * tl.exp2(whole - running), tl.exp2(whole)
        if has_column:
            own, last, before = _sequences(column, batch * length, first, length, chunk)
            weight = tl.where(own == last, weight, 0.0)
            factor = tl.where(last == before, factor, 0.0)
        k = load_rows(keys + at * keys_row, keys_row, first, length, chunk, state)
        v = load_rows(values + at * values_row, values_row, first, length, chunk, size)
        carried = _ahead(carried, k, v, weight, factor, precision)
        left *= factor
    place = (batch * segments + number) * heads + head
    tile = tl.arange(0, state)[:, None] * size + tl.arange(0, size)[None]
    tl.store(states + place * (state * size) + tile, carried)
    tl.store(decay + place, left)


@triton.jit(do_not_specialize=("length", "heads", "segments"))
def _segment_outputs(
    x, dt, bias, a, b, c, skip, column, states, y, length, heads, segments,
    x_batch, x_row, x_head, b_batch, b_row, b_head, c_batch, c_row, c_head,
    chunk: tl.constexpr, chunks: tl.constexpr, state: tl.constexpr, size: tl.constexpr, has_bias: tl.constexpr,
    softplus: tl.constexpr, has_column: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """y of a segment, chunk by chunk: from the state before it, from its own tokens, and the skip."""
    head, number, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    x += batch * x_batch + head * x_head
    b += batch * b_batch + head * b_head
    c += batch * c_batch + head * c_head
    token = tl.arange(0, chunk)
    kept = tl.load(skip + head).to(tl.float32)
    tile = tl.arange(0, state)[:, None] * size + tl.arange(0, size)[None]
    carried = tl.load(states + ((batch * segments + number) * heads + head) * (state * size) + tile)
    for i in range(chunks):
        first = (number * chunks + i) * chunk
        at, row = first.to(tl.int64), batch * length + first
        keys = load_rows(b + at * b_row, b_row, first, length, chunk, state)
        queries = load_rows(c + at * c_row, c_row, first, length, chunk, state)
        values = load_rows(x + at * x_row, x_row, first, length, chunk, size)
        step, _, running, whole = steps_and_decays(
            dt, bias, a, row, first, length, head, heads, chunk, has_bias, softplus
        )  # fmt: skip
        since, weight, factor = tl.exp2(running), step * tl.exp2(whole - running), tl.exp2(whole)
        sees = token[:, None] >= token[None]
        if has_column:
            own, last, before = _sequences(column, batch * length, first, length, chunk)
            since = tl.where(own == before, since, 0.0)
            weight = tl.where(own == last, weight, 0.0)
            factor = tl.where(last == before, factor, 0.0)
            sees = sees & (own[:, None] == own[None])
        out = tl.dot(queries, carried.to(queries.dtype), input_precision=precision) * since[:, None]
        scores = tl.dot(queries, tl.trans(keys), input_precision=precision)
        scores *= tl.exp2(tl.where(sees, running[:, None] - running[None], float("-inf"))) * step[None]
        out = tl.dot(scores.to(values.dtype), values, out, input_precision=precision)
        out += values.to(tl.float32) * kept
        target = ((row + token) * heads + head)[:, None] * size + tl.arange(0, size)[None]
        tl.store(y + target, out.to(y.dtype.element_ty), mask=(first + token < length)[:, None])
        carried = _ahead(carried, keys, values, weight, factor, precision)


@operator("m4v::ssd_outputs")
def ssd_outputs(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None, bias: Tensor | None,
    softplus: bool, number: int,
) -> Tensor:  # fmt: skip
    """y of `ssd_operators.ssd` with number `number` of `SEGMENTS`. No gradient."""
    config = SEGMENTS[number]
    (batch, length, heads, size), state = x.shape, b.shape[-1]
    segments = triton.cdiv(length, config.chunk * config.chunks)
    local, before = (
        torch.empty((batch, segments, heads, state, size), dtype=torch.float32, device=x.device) for _ in range(2)
    )
    decay = torch.empty((batch, segments, heads), dtype=torch.float32, device=x.device)
    y = torch.empty((batch, length, heads, size), dtype=x.dtype, device=x.device)
    common = {"chunk": config.chunk, "chunks": config.chunks} | constants_of(x, b, column, bias, softplus)
    grid, elements = (heads, segments, batch), state * size
    block = min(config.pass_block, elements)
    with torch.cuda.device_of(x):
        _segment_states[grid](
            b, x, dt, bias, a, column, local, decay, length, heads, segments, *strides_of(b, x),
            num_warps=config.states_warps, num_stages=config.states_stages, **common,
        )  # fmt: skip
        _pass_states[heads, elements // block, batch](
            local, decay, before, segments, heads, elements, block, config.pass_unroll, False,
            num_warps=config.pass_warps,
        )  # fmt: skip
        _segment_outputs[grid](
            x, dt, bias, a, b, c, skip, column, before, y, length, heads, segments, *strides_of(x, b, c),
            num_warps=config.outputs_warps, num_stages=config.outputs_stages, **common,
        )  # fmt: skip
    return y


@ssd_outputs.register_fake
def _(x, dt, a, b, c, skip, column, bias, softplus, number):
    return x.new_empty(x.shape)
