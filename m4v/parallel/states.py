"""States of the scans between ranks: h_end = sum of what each token adds, decayed to the end; y_t += C_t decay h_start.

A scan is linear in its starting state, so each rank scans its tokens from zero, on whatever kernel, tells what it adds
to the state and how much it lets decay, and adds what the state of the earlier ranks gives at its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m4v.model.ssd import running_sum
from m4v.parallel.collectives import gather
from m4v.parallel.group import SequenceGroup

Spans = Sequence[tuple[int, int]]


class Scanned(NamedTuple):
    """Inputs of a scan over composed slots: values x, step sizes dt, decay rates a, keys b, queries c.

    SSD: x (b, L, H, P), dt (b, L, H), a (H,), b and c (b, L, H, N). Mamba-1: x and dt (b, L, D), a (D, N), b and c
    (b, L, D, N). Slots that hold nothing have dt = 0: they add nothing and let nothing decay. L is whole chunks.
    """

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


def carried(scanned: Scanned, spans: Spans, chunk: int, group: SequenceGroup) -> Tensor:
    """What the states of earlier ranks add to the outputs: like x, in the type of dt. Columns lie in `spans`."""
    parts = [Scanned(*(u[:, begin:end] if u.ndim > 2 else u for u in scanned)) for begin, end in spans]
    summed = [_sums(part.dt, chunk) for part in parts]
    ends = torch.stack([_end_state(part, left) for part, (_, left) in zip(parts, summed, strict=True)], dim=1)
    totals = torch.stack([part.dt.sum(dim=1) for part in parts], dim=1)  # (b, C, H or D)
    start = _start_state(ends, totals, scanned.a, group)
    outs = [_read(part, past, start[:, c]) for c, (part, (past, _)) in enumerate(zip(parts, summed, strict=True))]
    return torch.cat(outs, dim=1)


def _start_state(ends: Tensor, totals: Tensor, a: Tensor, group: SequenceGroup) -> Tensor:
    """The state at this rank's first token, from all ranks' end states (b, C, ...) and summed step sizes (b, C, F)."""
    b, c, features = totals.shape
    sent = torch.cat([ends.reshape(b, c, features, -1), totals[..., None]], dim=-1)
    everyone = gather(sent, group)
    states, steps = everyone[..., :-1].reshape(-1, *ends.shape), everyone[..., -1]
    rank, ranks = group.rank, torch.arange(group.size, device=ends.device)
    between = (ranks[None] > ranks[:, None]) & (ranks[None] < rank)  # [q][p]: rank p decays what q adds
    passed = torch.einsum("qp,pbcf->qbcf", between.to(steps.dtype), steps)
    earlier = (ranks < rank).to(steps.dtype)
    weight = _decay(passed, a) * earlier.view(-1, *(1,) * (states.ndim - 1))
    return (states * weight).sum(0)


def _decay(steps: Tensor, a: Tensor) -> Tensor:
    """Decay over summed step sizes (..., F), to be multiplied with a state: (..., H, 1, 1) or (..., D, N)."""
    return (steps * a).exp()[..., None, None] if a.ndim == 1 else (steps[..., None] * a).exp()


def _end_state(part: Scanned, left: Tensor) -> Tensor:
    """SSD: (b, H, N, P); Mamba-1: (b, D, N). `left`: step sizes after each token."""
    if part.a.ndim == 1:
        weight = part.dt * (left * part.a).exp()
        keys, values = part.b.to(weight.dtype) * weight[..., None], part.x.to(weight.dtype)
        return torch.einsum("blhn,blhp->bhnp", keys, values)
    added = (part.dt * part.x)[..., None] * part.b
    return (added * (left[..., None] * part.a).exp()).sum(dim=1)


def _read(part: Scanned, past: Tensor, start: Tensor) -> Tensor:
    """Outputs that a starting state alone gives. `past`: step sizes up to and with each token."""
    if part.a.ndim == 1:
        queries = part.c.to(start.dtype) * (past * part.a).exp()[..., None]
        return torch.einsum("blhn,bhnp->blhp", queries, start)
    return ((past[..., None] * part.a).exp() * start[:, None] * part.c).sum(dim=-1)


def _sums(dt: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Of step sizes (b, L, F): sums up to and with each token, and after it. Each is a sum of its own, not a
    difference, which would lose small ones beside a long past."""
    inside = dt.unflatten(1, (-1, chunk)).movedim(3, 1)  # (b, F, chunks, chunk)
    past = _two_levels(inside)
    left = _two_levels(inside.flip(2, 3)).flip(2, 3) - inside
    return past.flatten(2).movedim(1, 2), left.flatten(2).movedim(1, 2)


def _two_levels(inside: Tensor) -> Tensor:
    running, whole = running_sum(inside), inside.sum(-1)
    return running + (running_sum(whole) - whole)[..., None]
