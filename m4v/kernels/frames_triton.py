# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The corner of frame-causal attention as Triton kernels: flash attention that starts from a rectangle's result.

Scores count in base 2 here: `scale` has the factor log2(e). Blocks that are seen wholly are taken without a mask.
Tokens are packed ones; rows of q, k, v are `((b L + token) H + head) size`, in int64. `parts` are what the
rectangles gave, each of them (b, rows, H, size).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FIELDS = tl.constexpr(9)  # of `frames_plan.query_tiles`
KEY_FIELDS = tl.constexpr(6)
TEXT_FIELDS = tl.constexpr(5)
# One compilation serves every layout: rows are whole heads, so that their alignment follows from `size` alone.
_ANY = ("batch", "length", "heads", "texts", "text", "slots", "image")


@triton.jit
def _places(sample, token, length, heads, head, size: tl.constexpr):
    """Offsets (rows, size) of tokens in (b, length, heads, size)."""
    row = (sample.to(tl.int64) * length + token) * heads + head
    return row[:, None] * size + tl.arange(0, size)[None]


@triton.jit
def _kind(pads, times, sample, token, valid, texts):
    """Of tokens: whether they are pads (int32), and their times."""
    pad = tl.load(pads + sample.to(tl.int64) * texts + token, mask=valid & (token < texts), other=0)
    return pad.to(tl.int32), tl.load(times + token, mask=valid, other=0)


@triton.jit
def _attend(
    q, q_pad, q_time, k, v, pads, times, low, end, top, total, acc, sample, head, length, heads, texts, scale,
    size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Keys [low, end) into the running maximum, sum and result of queries."""
    for start in range(low, end, keys):
        token = start + tl.arange(0, keys)
        place = _places(sample, token, length, heads, head, size)
        if masked:
            valid = token < end
            key = tl.load(k + place, mask=valid[:, None], other=0.0)
            value = tl.load(v + place, mask=valid[:, None], other=0.0)
        else:
            key, value = tl.load(k + place), tl.load(v + place)
        score = tl.dot(q, tl.trans(key)) * scale
        if masked:
            pad, time = _kind(pads, times, sample, token, valid, texts)
            seen = (q_pad[:, None] == pad[None]) & (q_time[:, None] >= time[None]) & valid[None]
            score = tl.where(seen, score, float("-inf"))
        peak = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - peak[:, None])
        shrink = tl.exp2(top - peak)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None])
        top = peak
    return top, total, acc


@triton.jit(do_not_specialize=_ANY[:6])
def forward_kernel(
    q, k, v, pads, times, tiles, parts, part_lses, out, lse, batch, length, heads, texts, text, slots, scale,
    size: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Result and log-sum-exp of one tile of queries of one head."""
    tile, line = tiles + tl.program_id(0) * FIELDS, tl.program_id(1).to(tl.int64)
    sample, head = line // heads, line % heads
    first, count, place, group = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    row, part = tl.load(tile + 4) + tl.arange(0, rows), tl.load(tile + 5)
    low, whole, end = tl.load(tile + 6), tl.load(tile + 7), tl.load(tile + 8)
    live, token = tl.arange(0, rows) < count, first + tl.arange(0, rows)
    q_place = _places(sample, token, length, heads, head, size)
    query = tl.load(q + q_place, mask=live[:, None], other=0.0)
    pad, time = _kind(pads, times, sample, token, live, texts)
    top = tl.full((rows,), -1e30, tl.float32)  # not infinity: it is subtracted before the first key is seen
    total, acc = tl.zeros((rows,), tl.float32), tl.zeros((rows, size), tl.float32)
    part_place = _places(sample, row, group, heads, head, size)
    for number in tl.static_range(most):
        own = live & (part == number)
        acc += tl.load(parts[number] + part_place, mask=own[:, None], other=0.0).to(tl.float32)
        value = tl.load(part_lses[number] + line * group + row, mask=own, other=0.0)
        top, total = tl.where(own, value * LOG2E, top), tl.where(own, 1.0, total)
    edge = low + (whole - low) // keys * keys
    top, total, acc = _attend(
        query, pad, time, k, v, pads, times, text, text + slots, top, total, acc, sample, head, length, heads, texts,
        scale, size, keys, True,
    )  # fmt: skip
    top, total, acc = _attend(
        query, pad, time, k, v, pads, times, low, edge, top, total, acc, sample, head, length, heads, texts, scale,
        size, keys, False,
    )  # fmt: skip
    top, total, acc = _attend(
        query, pad, time, k, v, pads, times, edge, end, top, total, acc, sample, head, length, heads, texts, scale,
        size, keys, True,
    )  # fmt: skip
    total = tl.where(live, total, 1.0)
    tl.store(out + q_place, (acc / total[:, None]).to(out.dtype.element_ty), mask=live[:, None])
    own_lse = lse + place.to(tl.int64) * batch * heads + line * group
    tl.store(own_lse + row, (top + tl.log2(total)) / LOG2E, mask=live)


@triton.jit
def _query_slope(
    q, grad, lse, delta, q_pad, q_time, k, v, pads, times, low, end, acc, sample, head, length, heads, texts, scale,
    size: tl.constexpr, keys: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Keys [low, end) into the gradient of queries, a factor of the scores aside."""
    for start in range(low, end, keys):
        token = start + tl.arange(0, keys)
        place = _places(sample, token, length, heads, head, size)
        if masked:
            valid = token < end
            key = tl.load(k + place, mask=valid[:, None], other=0.0)
            value = tl.load(v + place, mask=valid[:, None], other=0.0)
        else:
            key, value = tl.load(k + place), tl.load(v + place)
        weight = tl.exp2(tl.dot(q, tl.trans(key)) * scale - lse[:, None])
        if masked:
            pad, time = _kind(pads, times, sample, token, valid, texts)
            seen = (q_pad[:, None] == pad[None]) & (q_time[:, None] >= time[None]) & valid[None]
            weight = tl.where(seen, weight, 0.0)
        slope = weight * (tl.dot(grad, tl.trans(value)) - delta[:, None])
        acc = tl.dot(slope.to(key.dtype), key, acc)
    return acc


@triton.jit(do_not_specialize=_ANY[:6])
def query_kernel(
    q, k, v, pads, times, tiles, parts, out, grad, lse, logs, deltas, dq, batch, length, heads, texts, text, slots,
    scale, factor, size: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries; and, for the kernels of keys, its log-sum-exps in base 2 and sums of the
    result times its gradient: `logs` and `deltas` (b, H, length)."""
    tile, line = tiles + tl.program_id(0) * FIELDS, tl.program_id(1).to(tl.int64)
    sample, head = line // heads, line % heads
    first, count, place, group = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    row, part = tl.load(tile + 4) + tl.arange(0, rows), tl.load(tile + 5)
    low, whole, end = tl.load(tile + 6), tl.load(tile + 7), tl.load(tile + 8)
    live, token = tl.arange(0, rows) < count, first + tl.arange(0, rows)
    q_place = _places(sample, token, length, heads, head, size)
    query = tl.load(q + q_place, mask=live[:, None], other=0.0)
    slope = tl.load(grad + q_place, mask=live[:, None], other=0.0)
    result = tl.load(out + q_place, mask=live[:, None], other=0.0)
    pad, time = _kind(pads, times, sample, token, live, texts)
    delta = tl.sum(slope.to(tl.float32) * result.to(tl.float32), 1)
    own_lse = lse + place.to(tl.int64) * batch * heads + line * group
    log = tl.load(own_lse + row, mask=live, other=0.0) * LOG2E
    tl.store(logs + line * length + token, log, mask=live)
    tl.store(deltas + line * length + token, delta, mask=live)
    acc = tl.zeros((rows, size), tl.float32)
    edge = low + (whole - low) // keys * keys
    acc = _query_slope(
        query, slope, log, delta, pad, time, k, v, pads, times, text, text + slots, acc, sample, head, length, heads,
        texts, scale, size, keys, True,
    )  # fmt: skip
    acc = _query_slope(
        query, slope, log, delta, pad, time, k, v, pads, times, low, edge, acc, sample, head, length, heads, texts,
        scale, size, keys, False,
    )  # fmt: skip
    acc = _query_slope(
        query, slope, log, delta, pad, time, k, v, pads, times, edge, end, acc, sample, head, length, heads, texts,
        scale, size, keys, True,
    )  # fmt: skip
    acc = acc * factor
    part_place = _places(sample, row, group, heads, head, size)
    for number in tl.static_range(most):
        own = live & (part == number)
        acc += tl.load(parts[number] + part_place, mask=own[:, None], other=0.0).to(tl.float32)
    tl.store(dq + q_place, acc.to(dq.dtype.element_ty), mask=live[:, None])


@triton.jit
def _key_slopes(
    key, value, k_pad, k_time, q, grad, logs, deltas, pads, times, low, end, dk, dv, sample, line, head, length, heads,
    texts, scale, size: tl.constexpr, rows: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Queries [low, end) into the gradients of keys (a factor of the scores aside) and values."""
    for start in range(low, end, rows):
        token = start + tl.arange(0, rows)
        valid = token < end
        place = _places(sample, token, length, heads, head, size)
        query = tl.load(q + place, mask=valid[:, None], other=0.0)
        slope = tl.load(grad + place, mask=valid[:, None], other=0.0)
        log = tl.load(logs + line * length + token, mask=valid, other=0.0)
        delta = tl.load(deltas + line * length + token, mask=valid, other=0.0)
        weight = tl.exp2(tl.dot(key, tl.trans(query)) * scale - log[None])
        if masked:
            pad, time = _kind(pads, times, sample, token, valid, texts)
            seen = (k_pad[:, None] == pad[None]) & (k_time[:, None] <= time[None]) & valid[None]
            weight = tl.where(seen, weight, 0.0)
        else:
            weight = tl.where(valid[None], weight, 0.0)
        dv = tl.dot(weight.to(slope.dtype), slope, dv)
        change = weight * (tl.dot(value, tl.trans(slope)) - delta[None])
        dk = tl.dot(change.to(query.dtype), query, dk)
    return dk, dv


@triton.jit(do_not_specialize=_ANY)
def key_kernel(
    q, k, v, pads, times, tiles, ends, k_parts, v_parts, grad, logs, deltas, dk, dv, batch, length, heads, texts, text,
    slots, image, scale, factor, size: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of image keys and values, those of the rectangles added in their order."""
    tile, line = tiles + tl.program_id(0) * KEY_FIELDS, tl.program_id(1).to(tl.int64)
    sample, head = line // heads, line % heads
    first, count, low = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    whole, end, by_text = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5)
    live, token = tl.arange(0, keys) < count, first + tl.arange(0, keys)
    place = _places(sample, token, length, heads, head, size)
    key = tl.load(k + place, mask=live[:, None], other=0.0)
    value = tl.load(v + place, mask=live[:, None], other=0.0)
    pad, time = _kind(pads, times, sample, token, live, texts)
    own_dk, own_dv = tl.zeros((keys, size), tl.float32), tl.zeros((keys, size), tl.float32)
    text_end = text + by_text * slots
    own_dk, own_dv = _key_slopes(
        key, value, pad, time, q, grad, logs, deltas, pads, times, text, text_end, own_dk, own_dv, sample, line, head,
        length, heads, texts, scale, size, rows, True,
    )  # fmt: skip
    edge = tl.minimum(low + tl.cdiv(whole - low, rows) * rows, end)
    own_dk, own_dv = _key_slopes(
        key, value, pad, time, q, grad, logs, deltas, pads, times, low, edge, own_dk, own_dv, sample, line, head,
        length, heads, texts, scale, size, rows, True,
    )  # fmt: skip
    own_dk, own_dv = _key_slopes(
        key, value, pad, time, q, grad, logs, deltas, pads, times, edge, end, own_dk, own_dv, sample, line, head,
        length, heads, texts, scale, size, rows, False,
    )  # fmt: skip
    own_dk = own_dk * factor
    for number in tl.static_range(most):
        until = tl.load(ends + number)
        has = (live & (token - image < until))[:, None]
        part_place = _places(sample, token - image, until, heads, head, size)
        own_dk += tl.load(k_parts[number] + part_place, mask=has, other=0.0).to(tl.float32)
        own_dv += tl.load(v_parts[number] + part_place, mask=has, other=0.0).to(tl.float32)
    tl.store(dk + place, own_dk.to(dk.dtype.element_ty), mask=live[:, None])
    tl.store(dv + place, own_dv.to(dv.dtype.element_ty), mask=live[:, None])


@triton.jit(do_not_specialize=_ANY[:6])
def text_kernel(
    q, k, v, pads, times, tiles, grad, logs, deltas, sums_k, sums_v, batch, length, heads, texts, text, slots, scale,
    factor, size: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """What some of the queries give to a tile of text keys and values: `sums` (splits, b, slots, H, size)."""
    tile, line = tiles + tl.program_id(0) * TEXT_FIELDS, tl.program_id(1).to(tl.int64)
    sample, head = line // heads, line % heads
    first, count, low = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    end, split = tl.load(tile + 3), tl.load(tile + 4).to(tl.int64)
    live, token = tl.arange(0, keys) < count, first + tl.arange(0, keys)
    place = _places(sample, token, length, heads, head, size)
    key = tl.load(k + place, mask=live[:, None], other=0.0)
    value = tl.load(v + place, mask=live[:, None], other=0.0)
    pad, time = _kind(pads, times, sample, token, live, texts)
    own_dk, own_dv = tl.zeros((keys, size), tl.float32), tl.zeros((keys, size), tl.float32)
    own_dk, own_dv = _key_slopes(
        key, value, pad, time, q, grad, logs, deltas, pads, times, low, end, own_dk, own_dv, sample, line, head,
        length, heads, texts, scale, size, rows, True,
    )  # fmt: skip
    target = _places(split * batch + sample, token - text, slots, heads, head, size)
    tl.store(sums_k + target, own_dk * factor, mask=live[:, None])
    tl.store(sums_v + target, own_dv, mask=live[:, None])
