"""Wan2.1's text-to-video transformer on diffusers' modules, with attention or MM-DiM in its blocks.

The state dict has diffusers' keys; MM-DiM blocks differ below `attn1` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.config import Recompute
from m4v.model.checkpointing import run_block
from m4v.model.layers import unpatchify
from m4v.model.layout import Clip
from m4v.model.mamba import FLOAT32_PARAMETERS
from m4v.parallel.check import check_sequence
from m4v.parallel.samples import by_samples, shares_samples
from m4v.wan.config import WanConfig
from m4v.wan.kept import make_visible
from m4v.wan.mixer import WanMixContext, WanMixer, clip_layout, mix_context

if TYPE_CHECKING:
    from m4v.parallel.group import SequenceGroup
    from m4v.parallel.shard import Shard

QK_NORM = "rms_norm_across_heads"


class WanMMDiMBlock(WanTransformerBlock):  # type: ignore[misc]
    """A Wan block whose self-attention is MM-DiM. Cross-attention and MLP work on the video alone.

    The text that goes through the mixers shares the video's norm and modulation, as in the single-stream
    blocks of the PyramidFlow variant.
    """

    def __init__(self, config: WanConfig, number: int) -> None:
        super().__init__(
            config.width, config.mlp_width, config.heads, QK_NORM, config.cross_attention_norm, config.norm_eps
        )
        self.attn1 = WanMixer(config, number)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: WanMixContext
    ) -> Tensor:
        """Packed [text, video] (b, text + video, D), Wan's text (b, slots, D), modulation (b, 6, D)."""
        x, context = hidden_states, rotary_emb
        exact = torch.promote_types(x.dtype, torch.float32)
        parts = (self.scale_shift_table.to(exact) + temb.to(exact)).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        inner = (_layer_norm(self.norm1, x.to(exact)) * (1 + scale) + shift).to(x.dtype)
        x = (x.to(exact) + self.attn1(inner, context) * gate).to(x.dtype)
        slots = context.text_tokens
        text, video = x[:, :slots], x[:, slots:]
        normed = _layer_norm(self.norm2, video.to(exact)).to(x.dtype)
        video = video + self.attn2(normed, encoder_hidden_states, None, None)
        inner = (_layer_norm(self.norm3, video.to(exact)) * (1 + mlp_scale) + mlp_shift).to(x.dtype)
        video = (video.to(exact) + self.ffn(inner).to(exact) * mlp_gate).to(x.dtype)
        return torch.cat([text, video], dim=1)


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """diffusers' norm in the precision of x: its own forward would round float64 to float32."""
    if not isinstance(norm, nn.LayerNorm):  # cross_attention_norm off
        return x
    weight, bias = norm.weight, norm.bias
    return F.layer_norm(
        x,
        norm.normalized_shape,
        None if weight is None else weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        norm.eps,
    )


class WanTransformer(WanTransformer3DModel):  # type: ignore[misc]
    """`diffusers.WanTransformer3DModel` whose self-attention `config.mixer` chooses; runs in diffusers' WanPipeline.

    Built from a `WanConfig` (kept as `wan`); `m4v.wan.initialise.build_wan` initialises it,
    `m4v.wan.published` and `m4v.wan.checkpoint` load it.
    """

    def __init__(self, config: WanConfig) -> None:
        own_blocks = config.mixer == "mm_dim"
        super().__init__(
            patch_size=(1, config.patch, config.patch), num_attention_heads=config.heads,
            attention_head_dim=config.head_dim, in_channels=config.latent_channels,
            out_channels=config.latent_channels, text_dim=config.text_dim, freq_dim=config.frequency_dim,
            ffn_dim=config.mlp_width, num_layers=0 if own_blocks else config.blocks,
            cross_attn_norm=config.cross_attention_norm, qk_norm=QK_NORM, eps=config.norm_eps,
            rope_max_seq_len=config.rope_limit,
        )  # fmt: skip
        self.wan = config
        # Blocks whose activations are recomputed in backward instead of kept; diffusers' switch means all.
        self.recompute_blocks = 0
        self.recompute: Recompute = "block"
        self.sequence: SequenceGroup | None = None
        if own_blocks:
            self.blocks = nn.ModuleList([WanMMDiMBlock(config, number) for number in range(config.blocks)])
            self.register_to_config(num_layers=config.blocks)
        make_visible(self.blocks)
        self.restore_rotary()

    def share(self, group: SequenceGroup) -> None:
        """Share every forward with the other ranks of a group: all are given the same latents and return the same
        velocity. Raises ConfigError for more ranks than heads."""
        from m4v.parallel.wan import share_attention

        check_sequence(group.size, self.wan.heads)
        self.sequence = group
        share_attention(self.blocks, self_attention=self.wan.mixer == "attention")

    def restore_rotary(self) -> None:
        """Recompute the rotation tables, which no state dict holds, after the model was built without memory."""
        device = self.proj_out.weight.device
        with torch.device("cpu" if device.type == "meta" else device):
            patch, limit = (1, self.wan.patch, self.wan.patch), self.wan.rope_limit
            self.rope = WanRotaryPosEmbed(self.wan.head_dim, patch, limit, self.wan.rope_theta)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, object] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Velocity (b, c, t, h, w) of noisy latents of that shape, all frames at one noise level.

        `timestep` (b,) is sigma times 1000; `encoder_hidden_states` (b, slots, text_dim) is zero at pads, by
        which MM-DiM tells them from tokens. The names are diffusers'. Raises ValueError on sizes that do not
        fit and on inputs of other Wan models.
        """
        if encoder_hidden_states_image is not None or attention_kwargs:
            raise ValueError("the text-to-video model takes neither image features nor attention_kwargs")
        group, latents = self.sequence, hidden_states
        if group is not None and shares_samples(group, [[latents]]):
            (velocity,) = by_samples(
                group,
                latents.shape[0],
                lambda rows: [self._predicted(latents[rows], timestep[rows], encoder_hidden_states[rows], None)],
            )
        else:
            velocity = self._predicted(latents, timestep, encoder_hidden_states, group)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _predicted(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, group: SequenceGroup | None
    ) -> Tensor:
        """`forward`, its frames shared by a group."""
        clip = self._clip(hidden_states, timestep)
        temb, modulation, text, _ = self.condition_embedder(timestep, encoder_hidden_states, None)
        slots = text.shape[1] if self.wan.sequence_text else 0
        layout = clip_layout(clip, slots)
        shard = None if group is None else group.shard(layout, str(hidden_states.device))
        x = self._embedded(hidden_states, shard)
        shared: object = None
        if self.wan.mixer == "attention":
            turn = self.rope(hidden_states)
            shared = turn if shard is None else (*(u.index_select(1, shard.image) for u in turn), shard)
        else:
            valid = encoder_hidden_states[:, :slots].ne(0).any(dim=-1)
            slots = slots if shard is None else shard.local.text_tokens
            x = torch.cat([text[:, :slots], x], dim=1)
            shared = mix_context(self.wan, layout, valid, x, shard)
        modulation = modulation.unflatten(1, (6, -1))
        recomputed = len(self.blocks) if self.gradient_checkpointing else self.recompute_blocks
        for number, block in enumerate(self.blocks):
            how = self.recompute if number < recomputed else "none"
            x = run_block(block, how, x, text, modulation, shared)
        return self._velocity(x[:, slots:], temb, clip, shard)

    def _clip(self, latents: Tensor, timestep: Tensor) -> Clip:
        _, channels, frames, height, width = latents.shape
        patch, limit = self.wan.patch, self.wan.rope_limit
        if channels != self.wan.latent_channels or height % patch or width % patch:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: "
                f"{self.wan.latent_channels} channels and even sizes are needed"
            )
        if timestep.shape != latents.shape[:1]:
            raise ValueError(f"timestep of shape {tuple(timestep.shape)} for {latents.shape[0]} samples")
        if max(frames, height // patch, width // patch) > limit:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: at most {limit} positions per axis")
        return Clip(frames, height // patch, width // patch)

    def _embedded(self, latents: Tensor, shard: Shard | None) -> Tensor:
        """Tokens (b, video, D) of the latents, or of a shard's frames."""
        first, last = (0, latents.shape[2]) if shard is None else shard.cut[shard.group.rank][0]
        frames = latents[:, :, first:last] if first < last else latents[:, :, :1]  # no convolution of nothing
        x: Tensor = self.patch_embedding(frames).flatten(2).transpose(1, 2).contiguous()
        return x if first < last else x[:, :0]

    def _velocity(self, video: Tensor, temb: Tensor, clip: Clip, shard: Shard | None) -> Tensor:
        exact = torch.promote_types(video.dtype, torch.float32)
        shift, scale = (self.scale_shift_table + temb[:, None]).chunk(2, dim=1)
        normed = _layer_norm(self.norm_out, video.to(exact)) * (1 + scale) + shift
        tokens: Tensor = self.proj_out(normed.to(video.dtype))
        return unpatchify(tokens if shard is None else shard.video.assemble(tokens), *clip)

    def cast(self, dtype: torch.dtype) -> WanTransformer:
        """Parameters to `dtype`, but to float32 those that diffusers keeps there and those of the recurrence."""
        exact = {*self._keep_in_fp32_modules, *FLOAT32_PARAMETERS}
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if exact.intersection(name.split(".")) else dtype)
        return self
