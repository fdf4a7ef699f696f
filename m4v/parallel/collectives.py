"""Collectives of a sequence group that gradients pass through: the backward of each is its adjoint.

Ranks of a group run the same operations in the same order, forward and backward; who has nothing to send takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from m4v.parallel.group import SequenceGroup


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: SequenceGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _all_to_all(grad.contiguous(), ctx.received, ctx.sent, ctx.group), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x.contiguous(), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        # A sum of what arrives, in the order of ranks: the same bits in every run, unlike a reduction's own order.
        part = grad[0].numel()
        counts = [part] * ctx.group.size
        terms = _all_to_all(grad.flatten(), counts, counts, ctx.group)
        return terms.view_as(grad).sum(0), None


class _Assemble(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], group: SequenceGroup) -> Tensor:
        most, before = max(counts), sum(counts[: group.rank])
        ctx.own = slice(before, before + counts[group.rank])
        padded = x.new_zeros(x.shape[0], most, x.shape[2])
        padded[:, : x.shape[1]] = x
        return torch.cat([part[:, :n] for part, n in zip(_all_gather(padded, group), counts, strict=True)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad[:, ctx.own].contiguous(), None, None


def exchange(x: Tensor, sent: list[int], received: list[int], group: SequenceGroup) -> Tensor:
    """All-to-all of a flat tensor: `sent[q]` elements go to rank q, `received[q]` come from it, both in order of
    ranks. The gradient goes back the same way."""
    out: Tensor = _Exchange.apply(x, sent, received, group)  # type: ignore[no-untyped-call]
    return out


def gather(x: Tensor, group: SequenceGroup) -> Tensor:
    """(...) of one shape on all ranks -> (ranks, ...). Each rank's gradient is the sum of what all ranks made of it."""
    out: Tensor = _Gather.apply(x, group)  # type: ignore[no-untyped-call]
    return out


def assemble(x: Tensor, counts: Sequence[int], group: SequenceGroup) -> Tensor:
    """(b, counts[rank], F) -> (b, sum of counts, F) on every rank, for results of which *every rank computes the same
    loss*: its gradient is there already, so each rank takes its own rows of it and nothing travels back."""
    out: Tensor = _Assemble.apply(x, counts, group)  # type: ignore[no-untyped-call]
    return out


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: SequenceGroup) -> Tensor:
    out = x.new_empty(sum(received))
    distributed.all_to_all_single(out, x, received, sent, group=group.handle)
    return out


def _all_gather(x: Tensor, group: SequenceGroup) -> Tensor:
    out = x.new_empty(group.size, *x.shape)
    distributed.all_gather(list(out.unbind(0)), x, group=group.handle)
    return out
