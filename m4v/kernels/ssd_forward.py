# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Triton kernels of the Mamba-2 scan with one B and C per head: chunk states, state passing, chunk outputs.

A program works on one chunk of one head; its tokens lie in rows that may be wider than the heads (a slice of a
projection). Log decays are base 2 and summed from the start of the chunk; only differences <= 0 are exponentiated.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# One compilation serves every length: else those of 16 n tokens had their own, and perhaps other bits.
ANY = ("length", "heads", "chunks")


@triton.jit
def steps_and_decays(
    dt, bias, a, row, first, length, head, heads, chunk: tl.constexpr, has_bias: tl.constexpr, softplus: tl.constexpr
):
    """Step sizes of a chunk's tokens, zero behind the end, what they are the softplus of, and their log2 decays
    since the start of the chunk: three (chunk,), and the whole chunk's log2 decay."""
    token = tl.arange(0, chunk)
    inside = first + token < length
    raw = tl.load(dt + (row + token) * heads + head, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        raw += tl.load(bias + head).to(tl.float32)
    step = raw
    if softplus:
        small = tl.exp(-tl.abs(raw))
        above = 1.0 + small
        # log(1 + small) without losing a `small` that rounds away beside 1
        correction = small / tl.where(above == 1.0, 1.0, above - 1.0)
        step = tl.maximum(raw, 0.0) + tl.where(above == 1.0, small, tl.log(above) * correction)
    step = tl.where(inside, step, 0.0)
    running = tl.cumsum(step * (tl.load(a + head).to(tl.float32) * LOG2E), 0)
    whole = tl.sum(tl.where(token == chunk - 1, running, 0.0), 0)
    return step, raw, running, whole


@triton.jit
def columns_of(column, row, first, length, chunk: tl.constexpr):
    """Sequence of each token of a chunk, of its last token, and of the token before it (its first at the start)."""
    token = tl.arange(0, chunk)
    own = tl.load(column + row + token, mask=first + token < length, other=-1)
    last = tl.load(column + row + tl.minimum(chunk, length - first) - 1)
    before = tl.load(column + row - tl.where(first > 0, 1, 0))
    return own, last, before


@triton.jit
def load_rows(start, stride, first, length, chunk: tl.constexpr, width: tl.constexpr):
    """The (chunk, width) tile of one head, zero behind the end of the sequence."""
    token = tl.arange(0, chunk)
    place = token[:, None] * stride + tl.arange(0, width)[None]
    return tl.load(start + place, mask=(first + token < length)[:, None], other=0.0)


@triton.jit(do_not_specialize=ANY)
def _chunk_states(
    keys, values, dt, bias, a, column, states, decay, length, heads, chunks,
    keys_batch, keys_row, keys_head, values_batch, values_row, values_head,
    chunk: tl.constexpr, state: tl.constexpr, size: tl.constexpr, reverse: tl.constexpr, has_bias: tl.constexpr,
    softplus: tl.constexpr, has_column: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Sum of w_t k_t v_t^T over a chunk, float32 (N, P). Forwards w_t = dt_t times the decay to the end of the
    chunk, and the chunk's decay is stored (zero where the sequence changes); `reverse`: the decay since its start."""
    head, number, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = number * chunk
    row = batch * length + first
    step, _, running, whole = steps_and_decays(
        dt, bias, a, row, first, length, head, heads, chunk, has_bias, softplus
    )  # fmt: skip
    weight = tl.exp2(running) if reverse else step * tl.exp2(whole - running)
    if has_column:
        own, last, before = columns_of(column, row, first, length, chunk)
        weight = tl.where(own == (before if reverse else last), weight, 0.0)
    at = first.to(tl.int64)
    k = load_rows(
        keys + batch * keys_batch + at * keys_row + head * keys_head, keys_row, first, length, chunk, state
    )  # fmt: skip
    v = load_rows(
        values + batch * values_batch + at * values_row + head * values_head, values_row, first, length, chunk, size
    )  # fmt: skip
    weighted = (k * weight[:, None]).to(k.dtype)
    found = tl.dot(tl.trans(weighted), v, input_precision=precision)
    place = (batch * chunks + number) * heads + head
    tile = tl.arange(0, state)[:, None] * size + tl.arange(0, size)[None]
    tl.store(states + place * (state * size) + tile, found)
    if not reverse:
        factor = tl.exp2(whole)
        if has_column:
            factor = tl.where(last == before, factor, 0.0)
        tl.store(decay + place, factor)


@triton.jit(do_not_specialize=ANY[1:])
def _pass_states(
    local, decay, passed, chunks, heads, elements: tl.constexpr, block: tl.constexpr, unroll: tl.constexpr,
    reverse: tl.constexpr,
):  # fmt: skip
    """Running state before each chunk (behind it: `reverse`), from the chunks' own and their decays; float32 inside.
    `unroll` chunks are loaded together, since only their sums wait for each other."""
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    tile = tl.program_id(1) * block + tl.arange(0, block)
    running = tl.zeros((block,), tl.float32)
    begin = tl.zeros((), tl.int32)
    while begin < chunks:  # not `for`: Triton's interpreter cannot count to an argument under numpy 2.5
        found, factors = (), ()
        for i in tl.static_range(unroll):
            number = chunks - 1 - begin - i if reverse else begin + i
            inside = begin + i < chunks
            place = (batch * chunks + number) * heads + head
            found += (tl.load(local + place * elements + tile, mask=inside, other=0.0),)
            factors += (tl.load(decay + place, mask=inside, other=0.0),)
        for i in tl.static_range(unroll):
            number = chunks - 1 - begin - i if reverse else begin + i
            place = (batch * chunks + number) * heads + head
            tl.store(passed + place * elements + tile, running.to(passed.dtype.element_ty), mask=begin + i < chunks)
            running = running * factors[i] + found[i]
        begin += unroll


@triton.jit(do_not_specialize=ANY)
def _chunk_outputs(
    x, dt, bias, a, b, c, skip, column, states, y, length, heads, chunks,
    x_batch, x_row, x_head, b_batch, b_row, b_head, c_batch, c_row, c_head,
    chunk: tl.constexpr, state: tl.constexpr, size: tl.constexpr, has_bias: tl.constexpr, softplus: tl.constexpr,
    has_column: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """y of a chunk: from the state before it, from its own tokens, and the skip."""
    head, number, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, token = number * chunk, tl.arange(0, chunk)
    row = batch * length + first
    at = first.to(tl.int64)
    keys = load_rows(b + batch * b_batch + at * b_row + head * b_head, b_row, first, length, chunk, state)
    queries = load_rows(c + batch * c_batch + at * c_row + head * c_head, c_row, first, length, chunk, state)
    values = load_rows(x + batch * x_batch + at * x_row + head * x_head, x_row, first, length, chunk, size)
    step, _, running, _ = steps_and_decays(
        dt, bias, a, row, first, length, head, heads, chunk, has_bias, softplus
    )  # fmt: skip
    since = tl.exp2(running)
    sees = token[:, None] >= token[None]
    if has_column:
        own, _, before = columns_of(column, row, first, length, chunk)
        since = tl.where(own == before, since, 0.0)
        sees = sees & (own[:, None] == own[None])
    place = (batch * chunks + number) * heads + head
    tile = tl.arange(0, state)[:, None] * size + tl.arange(0, size)[None]
    incoming = tl.load(states + place * (state * size) + tile)
    out = tl.dot(queries, incoming, input_precision=precision) * since[:, None]
    scores = tl.dot(queries, tl.trans(keys), input_precision=precision)
    decay = tl.exp2(tl.where(sees, running[:, None] - running[None], float("-inf")))
    scores = scores * decay * step[None]
    out = tl.dot(scores.to(values.dtype), values, out, input_precision=precision)
    out += values.to(tl.float32) * tl.load(skip + head).to(tl.float32)
    target = ((row + token) * heads + head)[:, None] * size + tl.arange(0, size)[None]
    tl.store(y + target, out.to(y.dtype.element_ty), mask=(first + token < length)[:, None])
