"""Attention over [text, image] of each column: joint (dual-stream) and plain (single-stream)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.devices import upload
from m4v.kernels.blocks import attend_blocks, block_mask, uses_blocks, with_owners
from m4v.kernels.frames import FrameShape, attend_frames, uses_frames
from m4v.model import fused
from m4v.model.checkpointing import keeping_attention
from m4v.model.layers import Linear, RMSNorm, rotate
from m4v.model.layout import BatchLayout, frame_mask, per_layout
from m4v.model.products import product

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from m4v.parallel.shard import Shard


class AttentionContext(NamedTuple):
    """What every attention of one forward shares: the layout, rotations of [text, image], and masks per
    column, or one block mask over the packed tokens of all columns, or their frames. With a `shard` of the layout
    the rotations are those of its own tokens."""

    layout: BatchLayout
    turn: Tensor
    masks: list[Tensor | None]
    blocks: BlockMask | None = None
    shard: Shard | None = None
    frames: FrameShape | None = None


def attention_context(
    layout: BatchLayout, turn: Tensor, text_mask: Tensor, config: ModelConfig, like: Tensor
) -> AttentionContext:
    """The context for hidden states like `like`; `text_mask` (b, C, slots) bool."""
    causal, tokens = config.use_temporal_causal, layout.text_tokens + layout.image_tokens
    if uses_frames(like.device, like.dtype, tokens, config.head_dim):
        return AttentionContext(layout, turn, [], frames=attention_frames(layout, text_mask, causal))
    if uses_blocks(like.device, like.dtype, tokens, config.head_dim):
        return AttentionContext(layout, turn, [], attention_blocks(layout, text_mask, causal))
    return AttentionContext(layout, turn, attention_masks(layout, text_mask, causal, like.dtype))


def attention_frames(layout: BatchLayout, text_mask: Tensor, causal: bool) -> FrameShape:
    """The rule of `attention_masks` for `attend_frames`; where all frames see each other they are one."""
    frames = [c.frame_tokens if causal else [c.tokens] for c in layout.columns]
    tokens, counts = [n for column in frames for n in column], [len(column) for column in frames]
    return FrameShape(tokens, counts, layout.text_slots, (~text_mask).flatten(1).to(torch.uint8).contiguous())


def attention_blocks(layout: BatchLayout, text_mask: Tensor, causal: bool) -> BlockMask:
    """The rule of `attention_masks` for [text of all columns, image of all columns], as a block mask."""
    static, column, time = _static_blocks(layout, causal, str(text_mask.device))
    pads = F.pad(~text_mask.flatten(1), (0, layout.image_tokens), value=False)
    return with_owners(static, 2 * column + pads.int(), time)


@per_layout(256)
def _static_blocks(layout: BatchLayout, causal: bool, device: str) -> tuple[BlockMask, Tensor, Tensor]:
    """Block mask without pads, and column and time of every packed token, int32."""
    number = np.arange(len(layout.columns))
    column = np.concatenate([np.repeat(number, layout.text_slots), np.repeat(number, layout.lengths)])
    time = np.zeros(len(column))
    if causal:
        frames = [np.repeat(np.arange(c.frames), c.frame_tokens) for c in layout.columns]
        time[layout.text_tokens :] = np.concatenate(frames)
    static = block_mask(column, time, layout.text_tokens, device)
    of_column, of_time = (upload(torch.from_numpy(u.astype(np.int32)), device) for u in (column, time))
    return static, of_column, of_time


def attention_masks(layout: BatchLayout, text_mask: Tensor, causal: bool, dtype: torch.dtype) -> list[Tensor | None]:
    """Masks (b, 1, L, L) per column, or (1, 1, L, L) or None where no text slot is a pad.

    `text_mask` (b, C, slots) bool. Pads see pads only and nothing else sees them. On the CPU the masks are
    additive, made once here; scaled_dot_product_attention would convert boolean ones in every block.
    """
    # Off the CPU the answer would stop the program until the device has caught up (or is not there: meta).
    padded = text_mask.device.type != "cpu" or not bool(text_mask.all())
    masks: list[Tensor | None] = []
    for number, column in enumerate(layout.columns):
        allowed = frame_mask(column, layout.text_slots, causal, str(text_mask.device))
        if padded:
            valid = F.pad(text_mask[:, number], (0, column.tokens), value=True)
            same = valid[:, None, :, None] == valid[:, None, None, :]
            allowed = same if allowed is None else same & allowed
        elif allowed is not None:
            allowed = allowed[None, None]
        if allowed is None or allowed.is_cuda:
            masks.append(allowed)
        else:
            masks.append(torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, float("-inf")))
    return masks


def attend(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
    """Attention per column over packed tokens (b, text + image, heads, head size) -> (b, tokens, D)."""
    if context.shard is not None:
        tokens, heads = context.shard.tokens, q.shape[2]
        q, k, v = tokens.to_heads(q.to(v.dtype), k.to(v.dtype), v)
        return tokens.to_tokens(attend(q, k, v, context._replace(shard=None)), heads)
    if context.blocks is not None:
        return attend_blocks(q.to(v.dtype), k.to(v.dtype), v, context.blocks)
    if context.frames is not None:
        with keeping_attention():
            return attend_frames(q.to(v.dtype), k.to(v.dtype), v, context.frames)
    layout, slots = context.layout, context.layout.text_slots
    texts, images = [], []
    image = layout.text_tokens
    for number, length in enumerate(layout.lengths):
        text = slice(number * slots, (number + 1) * slots)
        rows = slice(image, image + length)
        mine_q, mine_k, mine_v = (torch.cat([x[:, text], x[:, rows]], dim=1).transpose(1, 2) for x in (q, k, v))
        with keeping_attention():
            out = F.scaled_dot_product_attention(mine_q, mine_k, mine_v, attn_mask=context.masks[number])
        out = out.transpose(1, 2).flatten(2)
        texts.append(out[:, :slots])
        images.append(out[:, slots:])
        image += length
    return torch.cat([*texts, *images], dim=1)


def _heads(x: Tensor, size: int) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


class JointAttention(nn.Module):
    """Dual-stream attention: own projections and q/k norms per stream, one attention over both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.size = config.width, config.head_dim
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(width, width)])
        self.to_add_out = Linear(width, width)
        self.norm_q, self.norm_k = RMSNorm(self.size), RMSNorm(self.size)
        self.norm_added_q, self.norm_added_k = RMSNorm(self.size), RMSNorm(self.size)

    def forward(self, image: Tensor, text: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """image (b, tokens, D), text (b, C slots, D), both already modulated -> the same shapes."""
        split = text.shape[1]
        if fused.fuses(image, self.size, context):
            q, k, v = fused.joint_heads(self, image, text, context.turn)
            out = attend(q, k, v, context)
            of_text, of_image = out.split([split, out.shape[1] - split], dim=1)  # one copy backward, slices have two
            return product(of_image, cast(Linear, self.to_out[0])), product(of_text, self.to_add_out)
        size = self.size
        q = torch.cat(
            [self.norm_added_q(_heads(self.add_q_proj(text), size)), self.norm_q(_heads(self.to_q(image), size))], 1
        )
        k = torch.cat(
            [self.norm_added_k(_heads(self.add_k_proj(text), size)), self.norm_k(_heads(self.to_k(image), size))], 1
        )
        v = torch.cat([_heads(self.add_v_proj(text), size), _heads(self.to_v(image), size)], 1)
        out = attend(rotate(q, context.turn), rotate(k, context.turn), v, context)
        return self.to_out[0](out[:, split:]), self.to_add_out(out[:, :split])


class SingleAttention(nn.Module):
    """Single-stream attention; its output projection is part of the block's `proj_out`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.size = config.width, config.head_dim
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(self.size), RMSNorm(self.size)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        if fused.fuses(x, self.size, context):
            q, k, v = fused.single_heads(self, x, context.turn)
            return attend(q, k, _heads(v, self.size), context)
        q, k = self.norm_q(_heads(self.to_q(x), self.size)), self.norm_k(_heads(self.to_k(x), self.size))
        v = _heads(self.to_v(x), self.size)
        return attend(rotate(q, context.turn), rotate(k, context.turn), v, context)


def text_rows(x: Tensor, columns: int) -> Tensor:
    """(b C, ...) rows to (b, C, ...): row i C + c belongs to column c."""
    return x.reshape(-1, columns, *x.shape[1:])


def valid_text(text_mask: Tensor, columns: Sequence[object]) -> Tensor:
    """Text mask (b C, slots) of any integer or bool type as bool (b, C, slots)."""
    return text_rows(text_mask.bool(), len(columns))
