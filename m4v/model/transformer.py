"""The whole transformer: columns of latent clips and their text in, one velocity field per column out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from m4v.config import ModelConfig, Recompute
from m4v.model.attention import AttentionContext, attention_context, valid_text
from m4v.model.blocks import DoubleBlock, MixContext, SingleBlock
from m4v.model.checkpointing import run_block
from m4v.model.layers import Modulation, TimeTextEmbedding, modulate, patchify, unpatchify
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.mamba import FLOAT32_PARAMETERS
from m4v.model.recomposition import recomposition, text_order
from m4v.model.scan import LAYER_ORDER
from m4v.model.tables import composition_table, register_types

T = TypeVar("T")


class M4VTransformer(nn.Module):
    """PyramidFlow's flux-style transformer with M4V's mixers; keys of the base as in published checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, token = config.width, config.latent_channels * config.patch**2
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_dim)
        self.context_embedder = nn.Linear(config.text_dim, width)
        self.x_embedder = nn.Linear(token, width)
        self.transformer_blocks = nn.ModuleList([DoubleBlock(config) for _ in range(config.double_blocks)])
        self.single_transformer_blocks = nn.ModuleList([SingleBlock(config, i) for i in range(config.single_blocks)])
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, token)
        # Blocks of each kind whose activations are computed again in backward instead of kept, and how many of them.
        self.recompute_blocks = 0
        self.recompute: Recompute = "block"

    def forward(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Velocity of the last clip of every column.

        `columns`: C lists of clips (b, c, t, h, w), oldest first. `timesteps` (b C,), `text` (b C, slots, d),
        `text_mask` (b C, slots; nonzero = token), `pooled` (b C, p): row i C + c belongs to column c.
        `stages`: pyramid stage of each column (0 = lowest); MM-DiM blocks need it, since the sizes
        of a column without history do not tell. Raises ValueError on shapes that do not fit.
        """
        layout = self._layout(columns, text, stages)
        count = len(columns)
        valid = valid_text(text_mask, columns)
        temb = self.time_text_embed(timesteps, pooled).unflatten(0, (-1, count))
        text = self.context_embedder(text).unflatten(0, (-1, count)).flatten(1, 2)
        image = self.x_embedder(torch.cat([patchify(clip) for column in columns for clip in column], dim=1))
        attention = self._attention_context(layout, valid, image)
        for number, block in enumerate(self.transformer_blocks):
            image, text = self._run(block, number, image, text, temb, attention)
        x = torch.cat([text, image], dim=1)
        mix = self._mix_context(layout, valid, x)
        for number, block in enumerate(self.single_transformer_blocks):
            x = self._run(block, number, x, temb, attention, mix, layout)
        return self._outputs(x, temb, layout)

    def cast(self, dtype: torch.dtype) -> M4VTransformer:
        """Parameters to `dtype`, but those of the state-space recurrence to float32: they do not bear rounding."""
        for name, parameter in self.named_parameters():
            exact = name.rpartition(".")[2] in FLOAT32_PARAMETERS
            parameter.data = parameter.data.to(torch.float32 if exact else dtype)
        return self

    def _layout(self, columns: Sequence[Sequence[Tensor]], text: Tensor, stages: Sequence[int] | None) -> BatchLayout:
        config = self.config
        if text.shape[1] != config.text_slots:
            raise ValueError(f"text has {text.shape[1]} slots, the model's text_slots is {config.text_slots}")
        if stages is None:
            if config.mixer != "attention":
                raise ValueError("MM-DiM blocks need the stage of each column: pass stages=[...]")
            stages = [0] * len(columns)
        batch = columns[0][-1].shape[0]
        if text.shape[0] != batch * len(columns):
            raise ValueError(f"text has {text.shape[0]} rows for {batch} samples in each of {len(columns)} columns")
        found = []
        for stage, clips in zip(stages, columns, strict=True):
            for clip in clips:
                if clip.shape[0] != batch or clip.shape[3] % config.patch or clip.shape[4] % config.patch:
                    raise ValueError(f"clip of shape {tuple(clip.shape)}: batch {batch} and even sizes are needed")
            grids = (Clip(c.shape[2], c.shape[3] // config.patch, c.shape[4] // config.patch) for c in clips)
            found.append(Column(stage, tuple(grids)))
        return BatchLayout(tuple(found), config.text_slots)

    def _attention_context(self, layout: BatchLayout, valid: Tensor, like: Tensor) -> AttentionContext:
        return attention_context(layout, self._rotary(layout, like, registers=False), valid, self.config, like)

    def _rotary(self, layout: BatchLayout, like: Tensor, registers: bool) -> Tensor:
        double = like.dtype == torch.float64
        return rotary(layout, self.config.axes, self.config.rope_theta, registers, str(like.device), double)

    def _mix_context(self, layout: BatchLayout, valid: Tensor, like: Tensor) -> MixContext | None:
        config, device = self.config, str(like.device)
        if config.mixer == "attention":
            return None
        turn = self._rotary(layout, like, config.registers)
        order, tokens = text_order(valid), layout.text_tokens + layout.image_tokens
        tables = [
            recomposition(
                composition_table(
                    layout, path, config.scan, config.registers, config.text_recomposition,
                    config.chunk_size, config.conv_width - 1, device,
                ),
                order, tokens, like.dtype,
            )
            for path in range(min(len(LAYER_ORDER), config.single_blocks))
        ]  # fmt: skip
        return MixContext(layout, register_types(layout, device), turn, tables)

    def _outputs(self, x: Tensor, temb: Tensor, layout: BatchLayout) -> list[Tensor]:
        image = layout.text_tokens
        last, lengths = [], []
        for column in layout.columns:
            clip = column.clips[-1]
            lengths.append(clip.frames * clip.height * clip.width)
            image += column.tokens
            last.append(x[:, image - lengths[-1] : image])
        scale, shift = self.norm_out(temb, lengths)  # scale first: not the order of the other norms
        tokens = self.proj_out(modulate(torch.cat(last, dim=1), shift, scale))
        return [
            unpatchify(part, *column.clips[-1])
            for part, column in zip(tokens.split(lengths, dim=1), layout.columns, strict=True)
        ]

    def _run(self, block: Callable[..., T], number: int, *arguments: object) -> T:
        return run_block(block, self.recompute if number < self.recompute_blocks else "none", *arguments)
