"""Self-attention of diffusers' Wan blocks on the tokens of several ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn import functional as F

from m4v.parallel.shard import Shard


class SharedAttention(WanAttnProcessor):  # type: ignore[misc]
    """A processor of diffusers' `WanAttention`. What blocks hand on as `rotary_emb` is cosines and sines of this rank's
    tokens (1, tokens, 1, head size), each twice, and the shard; without one all tokens are here."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary_emb: tuple[Tensor, Tensor, Shard] | tuple[Tensor, Tensor],
    ) -> Tensor:
        """Modulated video tokens (b, own tokens, D), the same shape out. The names are diffusers'."""
        if len(rotary_emb) == 2:
            whole: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return whole
        *turn, shard = rotary_emb
        heads = (attn.heads, hidden_states.shape[2] // attn.heads)
        q = _turned(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), *turn)
        k = _turned(attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads), *turn)
        v = attn.to_v(hidden_states).unflatten(2, heads)
        q, k, v = (u.transpose(1, 2) for u in shard.video.to_heads(q.to(v.dtype), k.to(v.dtype), v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](shard.video.to_tokens(mixed, attn.heads))
        return out


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs of x (b, tokens, heads, head size)."""
    even, odd = x.unflatten(-1, (x.shape[-1] // 2, 2)).unbind(-1)
    cosine, sine = cosine[..., 0::2], sine[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).type_as(x)


class _OwnQueries(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention of the own video tokens to the text. Without any, as on a rank that has no frame of an image,
    its parameters must take part all the same: ranks of sharded weights wait for each other's gradients."""

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any) -> Tensor:
        none = hidden_states.shape[1] == 0
        out: Tensor = super().__call__(attn, F.pad(hidden_states, (0, 0, 0, int(none))), *arguments)
        return out[:, :0] if none else out


def share_attention(blocks: Iterable[Any], self_attention: bool) -> None:
    """Let attention in these blocks work on a part of the tokens."""
    for block in blocks:
        block.attn2.set_processor(_OwnQueries())
        if self_attention:
            block.attn1.set_processor(SharedAttention())
