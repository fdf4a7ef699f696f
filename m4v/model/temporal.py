"""The temporal branch (paper §3.3): attention between whole frames at the lowest resolution.

History frames are averaged down to the lowest grid, the noisy frame is cut into pieces of that size; a piece
is one token of the attention, its places and channels together are the vector that is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from m4v.config import ModelConfig
from m4v.kernels.glue import uses_glue
from m4v.model.checkpointing import keeping_attention
from m4v.model.layers import Linear, RMSNorm
from m4v.model.layout import BatchLayout
from m4v.model.tables import TemporalTable, piece_mask, temporal_table
from m4v.model.token_runs import PieceTable, piece_table

if TYPE_CHECKING:
    from m4v.parallel.shard import Shard

MOST_CHANNELS = 1 << 16  # of a vector, in torch's memory-efficient attention


class TemporalBranch(nn.Module):
    """q, k, v per token and no output projection; `scale` starts at zero, so training lets the branch in."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads = config.width, (config.heads, config.head_dim)
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, image: Tensor, layout: BatchLayout, shard: Shard | None = None) -> Tensor:
        """Modulated image tokens (b, tokens, D) -> what is added to them, the same shape. With a shard of the layout
        they are its own, and it attends over all of them with some of the heads."""
        device = str(image.device)
        table = temporal_table(layout, device) if shard is None else shard.temporal_table
        pooled = [_average(image, sources) for sources in table.pools]
        tokens = torch.cat(pooled, dim=1).index_select(1, table.order)
        q = self.norm_q(self.to_q(tokens).unflatten(-1, self.heads))
        k = self.norm_k(self.to_k(tokens).unflatten(-1, self.heads))
        v = self.to_v(tokens).unflatten(-1, self.heads)
        if shard is not None:
            q, k, v = shard.temporal.to_heads(q.to(v.dtype), k.to(v.dtype), v)
        if uses_glue(v, self.heads[1]):
            mixed = between_pieces([u.to(v.dtype).transpose(1, 2) for u in (q, k, v)], piece_table(layout, device))
        else:
            whole = table if shard is None else temporal_table(layout, device)
            mixed = self._by_column(q, k, v, layout, whole, device)
        if shard is not None:
            mixed = shard.temporal.to_tokens(mixed, self.heads[0])
        return mixed.index_select(1, table.back) * self.scale

    def _by_column(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BatchLayout, table: TemporalTable, device: str
    ) -> Tensor:
        """Attention of (b, T, H, head size), one column after the other, by torch's own kernels."""
        outs, begin = [], 0
        for column, pieces, places in zip(layout.columns, table.pieces, table.places, strict=True):
            rows = slice(begin, begin + pieces * places)
            mine_q, mine_k, mine_v = (_by_piece(u[:, rows], pieces) for u in (q, k, v))
            # One score sums over a head's channels at all places, hence the scale.
            with keeping_attention(), kernels_for(mine_q):
                out = F.scaled_dot_product_attention(
                    mine_q, mine_k, mine_v, attn_mask=piece_mask(column, device), scale=(self.heads[1] * places) ** -0.5
                )
            outs.append(out.unflatten(-1, (places, -1)).permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2))
            begin = rows.stop
        return torch.cat(outs, dim=1)


def between_pieces(heads: Sequence[Tensor], table: PieceTable) -> Tensor:
    """Attention of q, k, v (b, H, T, head size) between pieces on our own kernels -> (b, T, H head size)."""
    from m4v.kernels.piece_attention import attend_pieces

    mixed, _ = attend_pieces(*heads, table.seen, table.table, table.pieces, table.places)
    found: Tensor = mixed.transpose(1, 2).flatten(2)
    return found


def kernels_for(q: Tensor) -> AbstractContextManager[None]:
    """Which of torch's kernels attend to vectors q. On CUDA its own choice falls on one that has no form for vectors
    of more than `MOST_CHANNELS`, as those of Wan are, where a piece is a whole frame of thousands of places."""
    return sdpa_kernel(SDPBackend.MATH) if q.is_cuda and q.shape[-1] > MOST_CHANNELS else nullcontext()


def _average(image: Tensor, sources: Tensor) -> Tensor:
    """Mean of the image tokens named by each row of `sources` (tokens, n)."""
    gathered = image.index_select(1, sources.flatten())
    if sources.shape[1] == 1:
        return gathered
    return gathered.reshape(image.shape[0], *sources.shape, image.shape[2]).mean(dim=2)


def _by_piece(x: Tensor, pieces: int) -> Tensor:
    """(b, pieces places, H, head size) -> (b, H, pieces, places head size)."""
    return x.reshape(x.shape[0], pieces, -1, *x.shape[2:]).permute(0, 3, 1, 2, 4).flatten(-2)
