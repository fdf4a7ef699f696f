"""Attention over tokens of several ranks: all tokens of some heads in place of all heads of some tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from m4v.model.layout import Indices
from m4v.parallel.collectives import assemble, exchange
from m4v.parallel.group import SequenceGroup, deal


class TokenExchange:
    """`rows[q]`: which of all tokens, in their order, rank q has."""

    def __init__(self, group: SequenceGroup, rows: Sequence[Indices], device: str) -> None:
        self.group, self.counts = group, [len(r) for r in rows]
        arrived = np.concatenate(rows)  # as the ranks' tokens follow each other
        ordered = bool((arrived == np.arange(len(arrived))).all())
        self._to_order = None if ordered else torch.from_numpy(np.argsort(arrived, kind="stable")).to(device)
        self._to_ranks = None if ordered else torch.from_numpy(arrived).to(device)

    def to_heads(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors (b, own tokens, H, size) of one type -> (b, all tokens, own heads, size) each, in one exchange.

        Every rank has a head at least (`check_sequence`); where their number does not divide, some have one more.
        """
        n, (b, own, heads, size) = len(tensors), tensors[0].shape
        dealt = deal(heads, self.group.size)
        mine = dealt[self.group.rank]
        parts = zip(*(x.split(dealt, dim=2) for x in tensors), strict=True)
        flat = torch.cat([x.reshape(-1) for to_rank in parts for x in to_rank])
        received = [n * b * count * mine * size for count in self.counts]
        out = exchange(flat, [n * b * own * h * size for h in dealt], received, self.group)
        pieces = [p.view(n, b, count, mine, size) for p, count in zip(out.split(received), self.counts, strict=True)]
        whole = _ordered(torch.cat(pieces, dim=2), self._to_order, 2)
        return whole.unbind(0)

    def to_tokens(self, x: Tensor, heads: int) -> Tensor:
        """(b, all tokens, own heads * size) -> (b, own tokens, H * size), the way back."""
        dealt = deal(heads, self.group.size)
        b, _, width = x.shape
        size = width // dealt[self.group.rank]
        parts = _ordered(x, self._to_ranks, 1).split(self.counts, dim=1)
        own = self.counts[self.group.rank]
        received = [b * own * h * size for h in dealt]
        out = exchange(
            torch.cat([p.reshape(-1) for p in parts]), [b * n * width for n in self.counts], received, self.group
        )
        pieces = out.split(received)
        return torch.cat([p.view(b, own, h * size) for p, h in zip(pieces, dealt, strict=True)], dim=2)

    def assemble(self, x: Tensor) -> Tensor:
        """(b, own tokens, F) -> (b, all tokens, F) on every rank; see `collectives.assemble`."""
        return _ordered(assemble(x, self.counts, self.group), self._to_order, 1)


def _ordered(x: Tensor, order: Tensor | None, dim: int) -> Tensor:
    return x if order is None else x.index_select(dim, order)
