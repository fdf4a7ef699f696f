"""The whole transformer: columns of latent clips and their text in, one velocity field per column out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from m4v.config import ModelConfig, Recompute
from m4v.model.attention import AttentionContext, attention_context, valid_text
from m4v.model.blocks import DoubleBlock, MixContext, SingleBlock
from m4v.model.checkpointing import run_block
from m4v.model.layers import Linear, Modulation, TimeTextEmbedding, modulate, patchify, unpatchify
from m4v.model.layout import BatchLayout, Clip, Column, rotary
from m4v.model.mamba import FLOAT32_PARAMETERS
from m4v.model.recomposition import recomposition, text_order
from m4v.model.scan import LAYER_ORDER
from m4v.model.tables import composition_table, register_types
from m4v.parallel.check import check_sequence
from m4v.parallel.samples import by_samples, shares_samples

if TYPE_CHECKING:
    from m4v.parallel.group import SequenceGroup
    from m4v.parallel.shard import Shard

T = TypeVar("T")


class M4VTransformer(nn.Module):
    """PyramidFlow's flux-style transformer with M4V's mixers; keys of the base as in published checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, token = config.width, config.latent_channels * config.patch**2
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_dim)
        self.context_embedder = Linear(config.text_dim, width)
        self.x_embedder = Linear(token, width)
        self.transformer_blocks = nn.ModuleList([DoubleBlock(config) for _ in range(config.double_blocks)])
        self.single_transformer_blocks = nn.ModuleList([SingleBlock(config, i) for i in range(config.single_blocks)])
        self.norm_out = Modulation(width, 2)
        self.proj_out = Linear(width, token)
        # Blocks of each kind whose activations are computed again in backward instead of kept, and how many of them.
        self.recompute_blocks = 0
        self.recompute: Recompute = "block"
        self.sequence: SequenceGroup | None = None

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
        group = self.sequence
        if group is None or not shares_samples(group, columns):
            return self._velocities(columns, timesteps, text, text_mask, pooled, stages, group)

        def of(rows: slice) -> list[Tensor]:
            clips = [[clip[rows] for clip in column] for column in columns]
            each = slice(rows.start * len(columns), rows.stop * len(columns))
            return self._velocities(clips, timesteps[each], text[each], text_mask[each], pooled[each], stages, None)

        return by_samples(group, columns[0][-1].shape[0], of)

    def _velocities(
        self,
        columns: Sequence[Sequence[Tensor]],
        timesteps: Tensor,
        text: Tensor,
        text_mask: Tensor,
        pooled: Tensor,
        stages: Sequence[int] | None,
        group: SequenceGroup | None,
    ) -> list[Tensor]:
        """`forward`, its frames shared by a group."""
        layout = self._layout(columns, text, stages)
        count = len(columns)
        valid = valid_text(text_mask, columns)
        temb = self.time_text_embed(timesteps, pooled).unflatten(0, (-1, count))
        text = self.context_embedder(text).unflatten(0, (-1, count)).flatten(1, 2)
        tokens = torch.cat([patchify(clip) for column in columns for clip in column], dim=1)
        shard = None if group is None else group.shard(layout, str(tokens.device))
        if shard is not None:
            text, tokens = text[:, : shard.local.text_tokens], tokens.index_select(1, shard.image)
        image = self.x_embedder(tokens)
        attention = self._attention_context(layout, valid, image, shard)
        for number, block in enumerate(self.transformer_blocks):
            image, text = self._run(block, number, image, text, temb, attention)
        x = torch.cat([text, image], dim=1)
        mix = self._mix_context(layout, valid, x, shard)
        own = layout if shard is None else shard.local
        for number, block in enumerate(self.single_transformer_blocks):
            x = self._run(block, number, x, temb, attention, mix, own)
        return self._outputs(x, temb, layout, shard)

    def share(self, group: SequenceGroup) -> None:
        """Share every forward with the other ranks of a group: all are given the same columns and return the same
        velocities. Raises ConfigError for more ranks than heads."""
        check_sequence(group.size, self.config.heads)
        self.sequence = group

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

    def _attention_context(
        self, layout: BatchLayout, valid: Tensor, like: Tensor, shard: Shard | None
    ) -> AttentionContext:
        turn = self._rotary(layout, like, registers=False)
        if shard is not None:
            turn = shard.select_turn(turn, registers=False, scanned_text=False)
        return attention_context(layout, turn, valid, self.config, like)._replace(shard=shard)

    def _rotary(self, layout: BatchLayout, like: Tensor, registers: bool) -> Tensor:
        double = like.dtype == torch.float64
        return rotary(layout, self.config.axes, self.config.rope_theta, registers, str(like.device), double)

    def _mix_context(self, layout: BatchLayout, valid: Tensor, like: Tensor, shard: Shard | None) -> MixContext | None:
        config, device = self.config, str(like.device)
        if config.mixer == "attention":
            return None
        if shard is not None:
            return self._part_of_mix(layout, valid, like, shard)
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

    def _part_of_mix(self, layout: BatchLayout, valid: Tensor, like: Tensor, shard: Shard) -> MixContext:
        from m4v.parallel.mix import part_of_mix

        turn = self._rotary(layout, like, self.config.registers)
        return MixContext(layout, *part_of_mix(self.config, self.config.single_blocks, turn, valid, like, shard), shard)

    def _outputs(self, x: Tensor, temb: Tensor, layout: BatchLayout, shard: Shard | None) -> list[Tensor]:
        whole = lengths = [c.clips[-1].frames * c.clips[-1].height * c.clips[-1].width for c in layout.columns]
        own = layout
        if shard is not None:
            own, lengths = shard.local, shard.noisy_lengths
        sizes = [own.text_tokens]
        for column, length in zip(own.columns, lengths, strict=True):
            sizes += [column.tokens - length, length]
        last = x.split([*sizes, x.shape[1] - sum(sizes)], dim=1)[2:-1:2]
        scale, shift = self.norm_out(temb, lengths)  # scale first: not the order of the other norms
        tokens = self.proj_out(modulate(torch.cat(last, dim=1), shift, scale))
        if shard is not None:
            tokens = shard.noisy.assemble(tokens)
        return [
            unpatchify(part, *column.clips[-1])
            for part, column in zip(tokens.split(whole, dim=1), layout.columns, strict=True)
        ]

    def _run(self, block: Callable[..., T], number: int, *arguments: object) -> T:
        return run_block(block, self.recompute if number < self.recompute_blocks else "none", *arguments)
