# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton kernel of the Mamba-2 scan's gradients within a chunk; chunk and running states come from `ssd_forward`.

Without atomics: what several chunks add up to (A, skip, bias) is stored per chunk and summed afterwards.
"""

from __future__ import annotations

import triton
import triton.language as tl

from m4v.kernels.ssd_forward import ANY, columns_of, load_rows, steps_and_decays


@triton.jit(do_not_specialize=ANY)
def _chunk_gradients(
    x, dt, bias, a, b, c, skip, column, dy, states, gradients, decay, dx, d_dt, db, dc, partial, length, heads, chunks,
    x_batch, x_row, x_head, b_batch, b_row, b_head, c_batch, c_row, c_head, dy_batch, dy_row, dy_head,
    chunk: tl.constexpr, state: tl.constexpr, size: tl.constexpr, has_bias: tl.constexpr, softplus: tl.constexpr,
    has_column: tl.constexpr, precision: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk: `states` before it, and `gradients` with regard to the state behind it (N, P).

    Pairs of tokens lie in (source s, target t), `block` targets at a time. The gradient of a token's log decay is
    summed over the pairs that span it, in float32, as a running sum of what enters at t less what leaves at s. A token
    with itself spans no decay and stays out: it is the largest pair, and compiled sums need not cancel to zero.
    """
    head, number, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, token = number * chunk, tl.arange(0, chunk)
    row = batch * length + first
    at = first.to(tl.int64)
    step, raw, running, whole = steps_and_decays(
        dt, bias, a, row, first, length, head, heads, chunk, has_bias, softplus
    )  # fmt: skip
    since, until = tl.exp2(running), tl.exp2(whole - running)
    if has_column:
        own, last, before = columns_of(column, row, first, length, chunk)
        since = tl.where(own == before, since, 0.0)
        until = tl.where(own == last, until, 0.0)
    inside = first + token < length
    place = (batch * chunks + number) * heads + head
    tile = tl.arange(0, state)[:, None] * size + tl.arange(0, size)[None]

    keys = load_rows(b + batch * b_batch + at * b_row + head * b_head, b_row, first, length, chunk, state)
    values = load_rows(x + batch * x_batch + at * x_row + head * x_head, x_row, first, length, chunk, size)
    outer = tl.load(gradients + place * (state * size) + tile)
    incoming = tl.load(states + place * (state * size) + tile)
    kind = values.dtype
    carried = tl.sum(tl.sum(outer.to(tl.float32) * incoming.to(tl.float32), 1), 0) * tl.load(decay + place)
    of_x = tl.dot(keys, outer, input_precision=precision) * until[:, None]
    of_b = tl.dot(values, tl.trans(outer), input_precision=precision) * until[:, None]
    entered = tl.sum(of_x * values.to(tl.float32), 1)
    stepped = (keys * step[:, None]).to(kind)

    direct, leaving = tl.zeros((chunk,), tl.float32), tl.zeros((chunk,), tl.float32)
    spanning = tl.zeros((chunk,), tl.float32)
    c_start, dy_start = c + batch * c_batch + head * c_head, dy + batch * dy_batch + head * dy_head
    for part in tl.static_range(chunk // block):
        start, target = first + part * block, part * block + tl.arange(0, block)
        queries = load_rows(c_start + (at + part * block) * c_row, c_row, start, length, block, state)
        above = load_rows(dy_start + (at + part * block) * dy_row, dy_row, start, length, block, size)
        here = token[:, None] == target[None]
        running_here = tl.sum(tl.where(here, running[:, None], 0.0), 0)
        since_here = tl.sum(tl.where(here, since[:, None], 0.0), 0)
        seen = token[:, None] <= target[None]
        if has_column:
            own_here = tl.load(column + row + target, mask=first + target < length, other=-1)
            seen = seen & (own[:, None] == own_here[None])
        factor = tl.exp2(tl.where(seen, running_here[None] - running[:, None], float("-inf")))
        scores = tl.dot(keys, tl.trans(queries), input_precision=precision) * factor
        reached = tl.dot(values, tl.trans(above), input_precision=precision)
        pairs = scores * reached
        crossing = tl.where(here, 0.0, pairs)
        direct += tl.sum(pairs, 1)
        leaving += tl.sum(crossing, 1)
        of_x = tl.dot(scores.to(kind), above, of_x, input_precision=precision)
        of_keys = (reached * factor).to(kind)
        of_b = tl.dot(of_keys, queries, of_b, input_precision=precision)
        of_c = tl.dot(above, tl.trans(incoming), input_precision=precision) * since_here[:, None]
        reading = tl.sum(crossing * step[:, None], 0) + tl.sum(of_c * queries.to(tl.float32), 1)
        spanning += tl.sum(tl.where(here, reading[None], 0.0), 1)
        of_c = tl.dot(tl.trans(of_keys), stepped, of_c, input_precision=precision)
        to_here = ((row + target) * heads + head)[:, None] * state + tl.arange(0, state)[None]
        tl.store(dc + to_here, of_c.to(dc.dtype.element_ty), mask=(first + target < length)[:, None])
    to_state = ((row + token) * heads + head)[:, None] * state + tl.arange(0, state)[None]
    tl.store(db + to_state, (of_b * step[:, None]).to(db.dtype.element_ty), mask=inside[:, None])

    # Read again rather than kept in registers all the time.
    upper = load_rows(dy_start + at * dy_row, dy_row, first, length, chunk, size).to(tl.float32)
    of_skip = tl.sum(tl.sum(upper * values.to(tl.float32), 1), 0)
    of_x = of_x * step[:, None] + upper * tl.load(skip + head).to(tl.float32)
    to_size = ((row + token) * heads + head)[:, None] * size + tl.arange(0, size)[None]
    tl.store(dx + to_size, of_x.to(dx.dtype.element_ty), mask=inside[:, None])

    gone = entered * step
    of_decay = tl.cumsum(spanning - leaving * step, 0, reverse=True) + (tl.cumsum(gone, 0) - gone) + carried
    of_step = direct + entered + of_decay * tl.load(a + head).to(tl.float32)
    if softplus:
        of_step = of_step * tl.sigmoid(raw)
    of_step = tl.where(inside, of_step, 0.0)
    tl.store(d_dt + (row + token) * heads + head, of_step.to(d_dt.dtype.element_ty), mask=inside)
    per_kind = tl.num_programs(2).to(tl.int64) * chunks * heads
    tl.store(partial + place, tl.sum(of_decay * step, 0))
    tl.store(partial + per_kind + place, of_skip)
    tl.store(partial + 2 * per_kind + place, tl.sum(of_step, 0))
