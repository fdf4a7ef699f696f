"""MM-DiM in the place of Wan's self-attention: the state-space mixer, the temporal branch, the output projection.

One clip at one resolution, so a batch row is one column of stage 0, with one type of register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.devices import upload
from m4v.kernels.glue import uses_glue
from m4v.model.checkpointing import keeping_attention
from m4v.model.layers import NORM_EPS, Linear
from m4v.model.layout import BatchLayout, Clip, Column, per_layout, rotary
from m4v.model.mamba import MambaMixer
from m4v.model.recomposition import Recomposition, recomposition, text_order
from m4v.model.scan import LAYER_ORDER
from m4v.model.tables import composition_table, register_types
from m4v.model.temporal import TemporalBranch, between_pieces, kernels_for
from m4v.model.token_runs import PieceTable
from m4v.wan.config import WanConfig

if TYPE_CHECKING:
    from m4v.parallel.shard import Shard


class WanMixContext(NamedTuple):
    """What every MM-DiM block of one forward shares; `tables` has one entry per scan path in use. With a `shard` of the
    layout, `types`, `turn` and `tables` are of its own frames."""

    layout: BatchLayout
    types: Tensor
    turn: Tensor
    tables: list[Recomposition]
    shard: Shard | None = None

    @property
    def text_tokens(self) -> int:
        """Text rows in front of this rank's packed tokens."""
        return self.layout.text_tokens if self.shard is None else self.shard.local.text_tokens


def clip_layout(clip: Clip, text_slots: int) -> BatchLayout:
    """The layout of one clip in which every frame is noisy."""
    return BatchLayout((Column(0, (clip,)),), text_slots)


def mix_context(
    config: WanConfig, layout: BatchLayout, valid: Tensor, like: Tensor, shard: Shard | None = None
) -> WanMixContext:
    """Tables and rotations for packed tokens `like` (b, text + video, D), or of a shard of them; `valid` (b, slots)
    marks real text."""
    device, mixer = str(like.device), config.mixer_config
    turn = rotary(layout, mixer.axes, config.rope_theta, config.registers, device, like.dtype == torch.float64)
    if shard is not None:
        from m4v.parallel.mix import part_of_mix

        types, turn, parts = part_of_mix(mixer, config.blocks, turn, valid[:, None], like, shard)
        return WanMixContext(layout, types[:, :1], turn, parts, shard)
    closing = config.sequence_text > 0
    order, tokens = text_order(valid[:, None]), layout.text_tokens + layout.image_tokens
    tables = [
        recomposition(
            composition_table(
                layout, path, config.scan, config.registers, closing, config.chunk_size, config.conv_width - 1, device
            ),
            order, tokens, like.dtype,
        )
        for path in range(min(len(LAYER_ORDER), config.blocks))
    ]  # fmt: skip
    return WanMixContext(layout, register_types(layout, device)[:, :1], turn, tables)


class WidthNorm(nn.Module):
    """Wan's norm of q and k: root mean square over the whole width, all heads together."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, heads, head size), the same shape out."""
        normed = F.rms_norm(x.flatten(-2), self.weight.shape, self.weight.to(x.dtype), self.eps)
        return normed.view_as(x)


class WanMamba(MambaMixer):
    """The MM-DiM mixer with Wan's norm on C and B, whose weights are those of q and k, and one register type."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config.mixer_config)
        self.norm_c = WidthNorm(config.width, config.norm_eps)  # type: ignore[assignment]
        self.norm_b = WidthNorm(config.width, config.norm_eps)  # type: ignore[assignment]
        if config.registers:
            self.registers = nn.Parameter(torch.empty(1, config.width))


class WanTemporalBranch(TemporalBranch):
    """Attention between whole frames (paper §3.3). There is no pyramid, so a frame is a single piece."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config.mixer_config)
        self.causal = config.temporal_causal

    def forward(self, image: Tensor, layout: BatchLayout, shard: Shard | None = None) -> Tensor:
        """Modulated video tokens (b, tokens, D) -> what is added to them, the same shape. With a shard of the layout
        they are its own, and it attends over all of them with some of the heads."""
        ((clip,),) = (column.clips for column in layout.columns)
        q, k, v = (layer(image) for layer in (self.to_q, self.to_k, self.to_v))
        if uses_glue(v, self.heads[1]):
            mixed = self._on_kernels(q, k, v, frame_table(layout, self.causal, str(image.device)), shard)
        else:
            mixed = self._on_torch(*self._normed(q, k, v, shard), clip)
        if shard is not None:
            mixed = shard.video.to_tokens(mixed, self.heads[0])
        scaled: Tensor = mixed * self.scale
        return scaled

    def _normed(self, q: Tensor, k: Tensor, v: Tensor, shard: Shard | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (b, tokens, D) as heads (b, tokens, H, head size), of all tokens where they are shared."""
        q, k, v = (u.unflatten(-1, self.heads) for u in (q, k, v))
        q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        if shard is not None:
            q, k, v = shard.video.to_heads(q, k, v)
        return q, k, v

    def _on_kernels(self, q: Tensor, k: Tensor, v: Tensor, table: PieceTable, shard: Shard | None) -> Tensor:
        """Rows (b, tokens, D), mixed. Where all are here, one kernel norms them and puts the heads outermost."""
        from m4v.kernels.head_norm import norm_heads

        if shard is not None:
            turned = [u.transpose(1, 2) for u in self._normed(q, k, v, shard)]
        else:
            turned = norm_heads(q, k, v, [], [self.norm_q.weight, self.norm_k.weight], None, True, NORM_EPS)
        return between_pieces(turned, table)

    def _on_torch(self, q: Tensor, k: Tensor, v: Tensor, clip: Clip) -> Tensor:
        """Heads (b, tokens, H, head size), mixed, by torch's own kernels."""
        places = clip.height * clip.width
        q, k, v = (_by_frame(u, clip.frames) for u in (q, k, v))
        # One score sums over a head's channels at all places, hence the scale.
        with keeping_attention(), kernels_for(q):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=(self.heads[1] * places) ** -0.5)
        mixed: Tensor = out.unflatten(-1, (places, -1)).permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
        return mixed


@per_layout(64)
def frame_table(layout: BatchLayout, causal: bool, device: str) -> PieceTable:
    """The frames of a clip as the pieces of one column; with `causal` a frame sees itself and those before it."""
    ((clip,),) = (column.clips for column in layout.columns)
    seen = torch.ones(clip.frames, clip.frames, dtype=torch.bool)
    places = clip.height * clip.width
    table = torch.tensor([[0, clip.frames, places, 0]], dtype=torch.int32)
    seen = (seen.tril() if causal else seen).flatten()
    return PieceTable(upload(seen, device), upload(table, device), [clip.frames], [places])


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """(b, frames places, H, head size) -> (b, H, frames, places head size)."""
    frame_rows: Tensor = x.unflatten(1, (frames, -1)).permute(0, 3, 1, 2, 4).flatten(-2)
    return frame_rows


class WanMixer(nn.Module):
    """Takes the place of a block's self-attention; `to_out.0` is the attention's own output projection."""

    def __init__(self, config: WanConfig, number: int) -> None:
        super().__init__()
        self.number = number
        self.mamba = WanMamba(config)
        self.temporal = WanTemporalBranch(config) if config.temporal_branch else None
        self.to_out = nn.ModuleList([Linear(config.width, config.width)])
        # Zero at first: until training lets it in, every block sees the text as Wan embeds it.
        self.text_scale = nn.Parameter(torch.empty(1)) if config.sequence_text else None

    def forward(self, x: Tensor, context: WanMixContext) -> Tensor:
        """Modulated [text, video] (b, text + video, D) -> what is added to the packed tokens, before AdaLN's gate."""
        text = context.text_tokens
        mixed: Tensor = self.mamba(x, context.types, context.turn, context.tables[self.number % len(context.tables)])
        if self.temporal is not None:
            mixed = mixed + F.pad(self.temporal(x[:, text:], context.layout, context.shard), (0, 0, text, 0))
        out: Tensor = self.to_out[0](mixed)
        if self.text_scale is None:
            return out
        return torch.cat([out[:, :text] * self.text_scale.to(out.dtype), out[:, text:]], dim=1)
