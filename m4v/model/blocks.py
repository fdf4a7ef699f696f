"""Dual-stream MM-DiT blocks and single-stream blocks with attention, MM-DiM, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.model import fused
from m4v.model.attention import AttentionContext, JointAttention, SingleAttention
from m4v.model.layers import FeedForward, Linear, Modulation, modulate
from m4v.model.layout import BatchLayout
from m4v.model.mamba import MambaMixer
from m4v.model.recomposition import Recomposition
from m4v.model.temporal import TemporalBranch

if TYPE_CHECKING:
    from m4v.parallel.shard import Shard


class MixContext(NamedTuple):
    """What every MM-DiM block of one forward shares; `tables` has one entry per scan path in use. With a `shard` of the
    layout, `types`, `turn` and `tables` are of its own frames."""

    layout: BatchLayout
    types: Tensor
    turn: Tensor
    tables: list[Recomposition]
    shard: Shard | None = None


class DoubleBlock(nn.Module):
    """MM-DiT block: text and image keep their own weights and meet in the attention (PyramidFlow, flux)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = JointAttention(config)
        self.ff, self.ff_context = FeedForward(width, config.mlp_ratio), FeedForward(width, config.mlp_ratio)

    def forward(self, image: Tensor, text: Tensor, temb: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """image (b, tokens, D), text (b, C slots, D), temb (b, C, D)."""
        if fused.fuses(image, self.attn.size, context):
            return fused.double_block(self, image, text, temb, context)
        layout = context.layout if context.shard is None else context.shard.local
        of_image = self.norm1(temb, layout.lengths)
        of_text = self.norm1_context(temb, [layout.text_slots] * len(layout.columns))
        mixed_image, mixed_text = self.attn(
            modulate(image, of_image[0], of_image[1]), modulate(text, of_text[0], of_text[1]), context
        )
        image = _mlp(image + of_image[2] * mixed_image, of_image, self.ff)
        text = _mlp(text + of_text[2] * mixed_text, of_text, self.ff_context)
        return image, text


def _mlp(x: Tensor, modulation: list[Tensor], ff: FeedForward) -> Tensor:
    _, _, _, shift, scale, gate = modulation
    out: Tensor = x + gate * ff(modulate(x, shift, scale))
    return out


class SingleBlock(nn.Module):
    """Single-stream block: `x + gate * proj_out([mixer, GELU(proj_mlp)])`; the mixers' outputs are summed."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        width, self.number, self.head_dim = config.width, number, config.head_dim
        mixers = config.mixers(number)
        self.norm = Modulation(width, 3)
        self.attn = SingleAttention(config) if "attention" in mixers else None
        self.mamba = MambaMixer(config) if "mm_dim" in mixers else None
        self.temporal = TemporalBranch(config) if self.mamba is not None and config.temporal_branch else None
        self.proj_mlp = Linear(width, config.mlp_ratio * width)
        self.proj_out = Linear(width + config.mlp_ratio * width, width)

    def forward(
        self, x: Tensor, temb: Tensor, attention: AttentionContext | None, mix: MixContext | None, layout: BatchLayout
    ) -> Tensor:
        """x (b, packed text and image, D), temb (b, C, D); `layout` is that of x."""
        if fused.fuses(x, self.head_dim, mix or attention):
            return fused.single_block(self, x, temb, attention, mix, layout)
        lengths = [layout.text_slots] * len(layout.columns) + layout.lengths
        twice = torch.cat([temb, temb], dim=1) if len(layout.columns) > 1 else temb
        shift, scale, gate = self.norm(twice, lengths if len(layout.columns) > 1 else [x.shape[1]])
        inner = modulate(x, shift, scale)
        mixed: list[Tensor] = []
        if self.attn is not None and attention is not None:
            mixed.append(self.attn(inner, attention))
        if self.mamba is not None and mix is not None:
            tables = mix.tables[self.number % len(mix.tables)]
            mixed.append(self.mamba(inner, mix.types, mix.turn, tables))
            if self.temporal is not None:
                added = self.temporal(inner[:, layout.text_tokens :], mix.layout, mix.shard)
                mixed.append(F.pad(added, (0, 0, layout.text_tokens, 0)))
        total = sum(mixed[1:], start=mixed[0])
        mlp = F.gelu(self.proj_mlp(inner), approximate="tanh")
        out: Tensor = x + gate * self.proj_out(torch.cat([total, mlp], dim=-1))
        return out
