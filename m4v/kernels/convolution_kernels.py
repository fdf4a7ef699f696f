# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005 (Triton concatenates tuples)
"""Triton kernels of the causal convolution with SiLU, which walk down segments of rows (`convolution` says how)."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(length, channels: tl.constexpr, rows: tl.constexpr, segments: tl.constexpr, block: tl.constexpr):
    """This program's tile, the first row of each of its segments, its channels, and which of them there are."""
    blocks: tl.constexpr = (channels + block - 1) // block
    tile = tl.program_id(0) // blocks
    first = (tile * segments + tl.arange(0, segments)) * rows
    channel = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    return tile, first[:, None], channel[None], (channel < channels)[None]


@triton.jit
def _taps_and_bias(weight, bias, channel, inside, width: tl.constexpr):
    taps = ()
    for tap in tl.static_range(width):
        taps += (tl.load(weight + channel * width + tap, mask=inside, other=0.0).to(tl.float32),)
    return taps, tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _past(source, column, first, inside, length, row: tl.constexpr, width: tl.constexpr, packed: tl.constexpr):
    """The rows before each segment's first that its taps read, and the sequences of these rows."""
    values, columns = (), ()
    for tap in tl.static_range(width - 1):
        ago = width - 1 - tap
        there = (first >= ago) & (first < length)
        values += (tl.load(source - ago * row, mask=there & inside, other=0.0).to(tl.float32),)
        if packed:
            columns += (tl.load(column - ago, mask=there, other=0),)
    return values, columns


@triton.jit
def _group(source, first, inside, end, row: tl.constexpr, group: tl.constexpr):
    """The next rows of each segment, zero behind the end; nothing waits for them here."""
    values = ()
    for step in tl.static_range(group):
        values += (tl.load(source + step * row, mask=(first + step < end) & inside, other=0.0),)
    return values


@triton.jit
def _pair(source, incoming, first, inside, end, x_row: tl.constexpr, grad_row: tl.constexpr, group: tl.constexpr):
    """The next rows of x and of the output's gradient."""
    return (_group(source, first, inside, end, x_row, group), _group(incoming, first, inside, end, grad_row, group))


@triton.jit
def _columns(column, first, length, group: tl.constexpr, packed: tl.constexpr):
    columns = ()
    if packed:
        for step in tl.static_range(group):
            columns += (tl.load(column + step, mask=first + step < length, other=0),)
    return columns


@triton.jit
def _of_its_sequence(values, columns, own: tl.constexpr, width: tl.constexpr, packed: tl.constexpr):
    """The `width` values, zero where they belong to another sequence than the one at `own`."""
    kept = ()
    for n in tl.static_range(width):
        if packed and n != own:
            kept += (tl.where(columns[n] == columns[own], values[n], 0.0),)
        else:
            kept += (values[n],)
    return kept


@triton.jit
def _weighted(total, values, taps, width: tl.constexpr):
    for tap in tl.static_range(width):
        total += values[tap] * taps[tap]
    return total


@triton.jit
def _gate(value):
    """Sigmoid, to a few units in the last place of float32, in five instructions; `tl.sigmoid` has eleven."""
    root = tl.rsqrt(1.0 + tl.exp2(value * -LOG2E))
    return root * root


@triton.jit
def _activated(offset, values, taps, width: tl.constexpr):
    value = _weighted(offset, values, taps, width)
    return value * _gate(value)


@triton.jit
def _slope(value, incoming):
    """Gradient of what goes into SiLU."""
    gate = _gate(value)
    return incoming * gate * (1.0 + value * (1.0 - gate))


@triton.jit
def _added(parts, values, slope, width: tl.constexpr):
    """The sums of the taps' gradients with one more row, and of the bias' behind them."""
    sums = ()
    for tap in tl.static_range(width):
        sums += (parts[tap] + slope * values[tap],)
    return sums + (parts[width] + slope,)


@triton.jit(do_not_specialize=("length",))
def convolution_forward(
    x, weight, bias, column, out, length, x_batch, channels: tl.constexpr, x_row: tl.constexpr, width: tl.constexpr,
    packed: tl.constexpr, block: tl.constexpr, segments: tl.constexpr, rows: tl.constexpr, group: tl.constexpr,
    ahead: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    _tile, first, channel, inside = _place(length, channels, rows, segments, block)
    taps, offset = _taps_and_bias(weight, bias, channel, inside, width)
    source = x + batch * x_batch + first.to(tl.int64) * x_row + channel
    target = out + (batch * length + first) * channels + channel
    sequence = column + batch * length + first
    past, columns = _past(source, sequence, first, inside, length, x_row, width, packed)
    end = tl.minimum(length, first + rows)
    fresh = _group(source, first, inside, end, x_row, group)
    for _ in range(0, rows, group):
        source += group * x_row
        if ahead:
            following = _group(source, first + group, inside, end, x_row, group)
        news = _columns(sequence, first, length, group, packed)
        for step in tl.static_range(group):
            values = past + (fresh[step].to(tl.float32),)
            if packed:
                columns = columns + (news[step],)
            read = _of_its_sequence(values, columns, width - 1, width, packed)
            value = _activated(offset, read, taps, width)
            there = (first + step < length) & inside
            tl.store(target + step * channels, value.to(out.dtype.element_ty), mask=there)
            past = values[1:]
            if packed:
                columns = columns[1:]
        first += group
        target += group * channels
        sequence += group
        if not ahead:
            following = _group(source, first, inside, end, x_row, group)
        fresh = following


@triton.jit
def _numbers(source, first, end, group: tl.constexpr):
    """The rows of x behind the next slots, -1 where there is none; nothing waits for them here."""
    numbers = ()
    for step in tl.static_range(group):
        numbers += (tl.load(source + step, mask=(first + step >= 0) & (first + step < end), other=-1),)
    return numbers


@triton.jit
def _rows_at(x, numbers, inside, channels: tl.constexpr, group: tl.constexpr):
    values = ()
    for step in tl.static_range(group):
        place = numbers[step].to(tl.int64) * channels
        values += (tl.load(x + place, mask=(numbers[step] >= 0) & inside, other=0.0),)
    return values


@triton.jit(do_not_specialize=("length",))
def convolution_gathered(
    x, source, weight, bias, out, length, channels: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
    rows: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """`convolution_forward` of the rows of x that `source` numbers, zeros where it is -1, as one segment. The numbers
    of a group's rows are read while the group before is computed."""
    batch = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (channels + block - 1) // block
    first = (tl.program_id(0) // blocks) * rows
    channel = (tl.program_id(0) % blocks) * block + tl.arange(0, block)
    inside, end = channel < channels, tl.minimum(length, first + rows)
    taps, offset = _taps_and_bias(weight, bias, channel, inside, width)
    x += channel
    source += batch * length + first
    target = out + (batch * length + first) * channels + channel
    before: tl.constexpr = width - 1
    opening = _rows_at(x, _numbers(source - before, first - before, end, before), inside, channels, before)
    fresh = _rows_at(x, _numbers(source, first, end, group), inside, channels, group)
    past = ()
    for tap in tl.static_range(before):
        past += (opening[tap].to(tl.float32),)
    for _ in range(0, rows, group):
        source += group
        following = _numbers(source, first + group, end, group)
        for step in tl.static_range(group):
            values = past + (fresh[step].to(tl.float32),)
            value = _activated(offset, values, taps, width)
            tl.store(target + step * channels, value.to(out.dtype.element_ty), mask=(first + step < length) & inside)
            past = values[1:]
        first += group
        target += group * channels
        fresh = _rows_at(x, following, inside, channels, group)


@triton.jit
def _ahead(
    source, incoming, sequence, past, columns, taps, offset, first, inside, length, x_row: tl.constexpr,
    grad_row: tl.constexpr, width: tl.constexpr, packed: tl.constexpr, segments: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The sums with the very first slopes of a sample, the slopes of each segment's first rows, and what follows them
    reads of the past."""
    sums, slopes = (), ()
    for _ in tl.static_range(width + 1):
        sums += (tl.zeros((segments, block), tl.float32),)
    fresh, grads = _pair(source, incoming, first, inside, length, x_row, grad_row, width - 1)
    news = _columns(sequence, first, length, width - 1, packed)
    for step in tl.static_range(width - 1):
        values = past + (fresh[step].to(tl.float32),)
        if packed:
            columns = columns + (news[step],)
        read = _of_its_sequence(values, columns, width - 1, width, packed)
        slope = _slope(_weighted(offset, read, taps, width), grads[step].to(tl.float32))
        sums = _added(sums, read, tl.where(first == 0, slope, 0.0), width)
        slopes += (slope,)
        past = values[1:]
        if packed:
            columns = columns[1:]
    return sums, slopes, past, columns


@triton.jit(do_not_specialize=("length",))
def convolution_backward(
    grad, x, weight, bias, column, to_x, parts, length, grad_batch, x_batch, channels: tl.constexpr,
    grad_row: tl.constexpr, x_row: tl.constexpr, width: tl.constexpr, packed: tl.constexpr, block: tl.constexpr,
    segments: tl.constexpr, rows: tl.constexpr, group: tl.constexpr, ahead: tl.constexpr,
):  # fmt: skip
    """Gradient of x, and a tile's part of those of the taps and, behind them, of the bias.

    The slopes (gradients of what goes into SiLU) walk `width - 1` rows ahead of the rows whose gradient is written, and
    a segment adds to the sums those of the rows ahead: all but the first rows, which belong to the first segment."""
    batch = tl.program_id(1).to(tl.int64)
    tile, first, channel, inside = _place(length, channels, rows, segments, block)
    taps, offset = _taps_and_bias(weight, bias, channel, inside, width)
    back = ()
    for tap in tl.static_range(width):
        back += (taps[width - 1 - tap],)
    source = x + batch * x_batch + first.to(tl.int64) * x_row + channel
    incoming = grad + batch * grad_batch + first.to(tl.int64) * grad_row + channel
    target = to_x + (batch * length + first) * channels + channel
    sequence = column + batch * length + first
    past, columns = _past(source, sequence, first, inside, length, x_row, width, packed)
    sums, slopes, past, columns = _ahead(
        source, incoming, sequence, past, columns, taps, offset, first, inside, length, x_row, grad_row, width, packed,
        segments, block,
    )  # fmt: skip
    source += (width - 1) * x_row
    incoming += (width - 1) * grad_row
    sequence += width - 1
    row = first + (width - 1)  # of the slopes
    end = tl.minimum(length, row + rows)
    fresh, grads = _pair(source, incoming, row, inside, end, x_row, grad_row, group)
    for _ in range(0, rows, group):
        source += group * x_row
        incoming += group * grad_row
        row += group
        if ahead:
            following = _pair(source, incoming, row, inside, end, x_row, grad_row, group)
        news = _columns(sequence, first + (width - 1), length, group, packed)
        for step in tl.static_range(group):
            values = past + (fresh[step].to(tl.float32),)
            if packed:
                columns = columns + (news[step],)
            read = _of_its_sequence(values, columns, width - 1, width, packed)
            slope = _slope(_weighted(offset, read, taps, width), grads[step].to(tl.float32))
            sums = _added(sums, read, slope, width)
            readers = slopes + (slope,)
            mine = _of_its_sequence(readers, columns, 0, width, packed)
            total = _weighted(tl.zeros((segments, block), tl.float32), mine, back, width)
            there = (first + step < length) & inside
            tl.store(target + step * channels, total.to(to_x.dtype.element_ty), mask=there)
            past, slopes = values[1:], readers[1:]
            if packed:
                columns = columns[1:]
        first += group
        target += group * channels
        sequence += group
        if not ahead:
            following = _pair(source, incoming, row, inside, end, x_row, grad_row, group)
        fresh, grads = following
    tiles = tl.num_programs(0) // ((channels + block - 1) // block)
    part = parts + (batch * tiles + tile) * (width + 1) * channels + channel
    for tap in tl.static_range(width + 1):
        tl.store(part + tap * channels, tl.sum(sums[tap], axis=0)[None], mask=inside)


@triton.jit(do_not_specialize=("count",))
def convolution_sums(
    parts, to_weight, to_bias, count, channels, width: tl.constexpr, parts_block: tl.constexpr, block: tl.constexpr
):
    """Sum of the programs' parts (count, width + 1, channels) of one tap or, behind them, of the bias."""
    tap = tl.program_id(1)
    channel = tl.program_id(0) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.zeros((parts_block, block), tl.float32)
    first = tl.zeros((), tl.int32)
    while first < count:  # Triton's interpreter has no ranges between tensors
        place = first + tl.arange(0, parts_block)
        where = (place.to(tl.int64)[:, None] * (width + 1) + tap) * channels + channel[None]
        total += tl.load(parts + where, mask=(place < count)[:, None] & inside[None], other=0.0)
        first += parts_block
    found = tl.sum(total, axis=0)
    if tap < width:
        tl.store(to_weight + channel * width + tap, found.to(to_weight.dtype.element_ty), mask=inside)
    else:
        tl.store(to_bias + channel, found.to(to_bias.dtype.element_ty), mask=inside)
