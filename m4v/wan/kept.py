"""diffusers' layers made visible to selective recomputation (`m4v.model.checkpointing`)."""

from __future__ import annotations

from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn

from m4v.model.checkpointing import keeping_attention
from m4v.model.layers import Linear


class KeptAttention(WanAttention):  # type: ignore[misc]
    """Attention of a Wan block whose result selective recomputation keeps, whatever its processor does besides."""

    def forward(self, *arguments: object, **options: object) -> Tensor:
        with keeping_attention():
            out: Tensor = super().forward(*arguments, **options)
        return out


def make_visible(blocks: nn.Module) -> None:
    """Turn the products and the attention in diffusers' blocks into those that a selective block keeps. Parameters,
    keys and results stay."""
    for module in blocks.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif type(module) is WanAttention:
            module.__class__ = KeptAttention
