"""The corner of frame-causal attention in plain torch: the rule itself, for the CPU and for tests of the kernels."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from m4v.kernels.frames_plan import ColumnPlan


class Forward(NamedTuple):
    """Result of a rectangle: (b, n, H, size) and log-sum-exp (b, H, n)."""

    out: Tensor
    lse: Tensor


class Backward(NamedTuple):
    """Gradients of a rectangle's queries (b, n, H, size), and keys and values (b, m, H, size)."""

    q: Tensor
    k: Tensor
    v: Tensor


@lru_cache(64)
def _corner(column: ColumnPlan) -> tuple[Tensor, Tensor]:
    """Packed tokens of a column, and (tokens, tokens) which keys a query sees in the corner, pads aside."""
    image, slots = sum(column.frames), column.slots
    tokens = torch.cat([column.text + torch.arange(slots), column.image + torch.arange(image)])
    time = torch.cat([torch.zeros(slots, dtype=torch.int64), torch.arange(len(column.frames)).repeat_interleave(
        torch.tensor(column.frames))])  # fmt: skip
    seen = time[:, None] >= time[None]
    for group in column.groups:
        seen[slots + group.first : slots + group.end, slots : slots + group.dense] = False
    return tokens, seen


def _scores(column: ColumnPlan, q: Tensor, k: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
    """Packed tokens of the column, and their scaled scores (b, H, tokens, tokens), minus infinity where unseen."""
    tokens, seen = (u.to(q.device) for u in _corner(column))
    pad = torch.zeros(len(q), len(tokens), dtype=torch.bool, device=q.device)
    pad[:, : column.slots] = pads[:, column.text : column.text + column.slots].bool()
    mask = seen & (pad[:, :, None] == pad[:, None])
    score = torch.einsum("bqhc,bkhc->bhqk", _wide(q[:, tokens]), _wide(k[:, tokens])) / math.sqrt(q.shape[-1])
    return tokens, score.masked_fill(~mask[:, None], float("-inf"))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def corner_forward(
    column: ColumnPlan, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, parts: list[Forward], out: Tensor, lse: Tensor
) -> None:
    """Write the column's rows of `out` (b, L, H, size) and its values of the flat `lse`, rectangles included."""
    tokens, score = _scores(column, q, k, pads)
    rows, result = torch.logsumexp(score, -1), torch.zeros_like(_wide(q[:, tokens]))
    before = torch.full_like(rows, float("-inf"))
    for (_, group), part in zip(column.parts, parts, strict=True):
        own = slice(column.slots + group.first, column.slots + group.end)
        before[:, :, own], result[:, own] = part.lse.to(before.dtype), part.out.to(result.dtype)
    total = torch.logaddexp(rows, before)
    weight = torch.exp(score - total[..., None])
    result *= torch.exp(before - total).transpose(1, 2)[..., None]
    result += torch.einsum("bhqk,bkhc->bqhc", weight, _wide(v[:, tokens]))
    out[:, tokens] = result.to(out.dtype)
    for value, begin, end in _segments(column, lse, q):
        value.copy_(total[:, :, begin:end])


def _segments(column: ColumnPlan, flat: Tensor, q: Tensor) -> list[tuple[Tensor, int, int]]:
    """(b, H, rows) views of the flat values per row: of the text and of each group, and their rows in the column."""
    ranges = [(column.place, 0, column.slots)]
    ranges += [
        (place, column.slots + g.first, column.slots + g.end)
        for place, g in zip(column.places, column.groups, strict=True)
    ]
    return [(segment(flat, q, place, end - begin), begin, end) for place, begin, end in ranges]


def segment(flat: Tensor, q: Tensor, place: int, rows: int) -> Tensor:
    """(b, H, rows) contiguous view of the flat values per row of q (b, L, H, size)."""
    batch, heads = q.shape[0], q.shape[2]
    begin = batch * heads * place
    return flat[begin : begin + batch * heads * rows].view(batch, heads, rows)


def corner_backward(
    column: ColumnPlan, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, out: Tensor, lse: Tensor,
    parts: list[Backward], into: Backward,
) -> None:  # fmt: skip
    """Write the column's rows of the gradients `into` (b, L, H, size), rectangles included."""
    tokens, score = _scores(column, q, k, pads)
    total = torch.cat([value for value, *_ in _segments(column, lse, q)], dim=2).to(score.dtype)
    weight = torch.exp(score - total[..., None])
    wide_grad, wide_v = _wide(grad[:, tokens]), _wide(v[:, tokens])
    delta = (wide_grad * _wide(out[:, tokens])).sum(-1).transpose(1, 2)
    slope = weight * (torch.einsum("bqhc,bkhc->bhqk", wide_grad, wide_v) - delta[..., None]) / math.sqrt(q.shape[-1])
    dq = torch.einsum("bhqk,bkhc->bqhc", slope, _wide(k[:, tokens]))
    dk = torch.einsum("bhqk,bqhc->bkhc", slope, _wide(q[:, tokens]))
    dv = torch.einsum("bhqk,bqhc->bkhc", weight, wide_grad)
    for (_, group), part in zip(column.parts, parts, strict=True):
        dq[:, column.slots + group.first : column.slots + group.end] += _wide(part.q)
        dk[:, column.slots : column.slots + group.dense] += _wide(part.k)
        dv[:, column.slots : column.slots + group.dense] += _wide(part.v)
    for target, found in zip(into, (dq, dk, dv), strict=True):
        target[:, tokens] = found.to(target.dtype)
