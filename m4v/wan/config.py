"""Frozen configuration of the Wan2.1 variant: model and checkpoint (torch- and diffusers-free).

The sizes are those of the published text-to-video models; `wan_preset` names them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from m4v.config import Mixer, ModelConfig
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError
from m4v.wan_flow_config import WAN_NEGATIVE_PROMPT, WanFlowConfig, WanSamplerConfig

__all__ = [
    "WAN_NEGATIVE_PROMPT", "WanCheckpointConfig", "WanConfig", "WanFlowConfig", "WanSamplerConfig", "wan_preset",
]  # fmt: skip


class WanConfig(FrozenModel):
    """Wan2.1's text-to-video transformer (paper §4.1). `mixer` chooses what its self-attention becomes.

    `attention` is Wan2.1 itself. `mm_dim` replaces the self-attention of *all* blocks and leaves
    cross-attention, MLPs and AdaLN as they are. The paper does not say what the multi-modal
    re-composition does in a model whose text enters through cross-attention; see `text_recomposition`.
    The state-space fields mean what they mean in `ModelConfig`.
    """

    kind: Literal["wan"] = "wan"
    width: int = Field(1536, gt=0)
    heads: int = Field(12, gt=0)
    blocks: int = Field(30, ge=1)
    mlp_width: int = Field(8960, gt=0)
    latent_channels: int = Field(16, gt=0)
    patch: Literal[2] = 2  # latent places per token and side; one latent frame in time
    text_dim: int = Field(4096, gt=0)
    text_slots: int = Field(512, gt=0)  # rows the encoded text is padded to, with zeros
    frequency_dim: int = Field(256, gt=0)  # sinusoids of the timestep
    cross_attention_norm: bool = True
    norm_eps: float = Field(1e-6, gt=0)
    rope_limit: int = Field(1024, gt=0)  # positions per axis that the rotation tables hold
    rope_theta: float = Field(10000.0, gt=1)

    mixer: Mixer = "mm_dim"
    ssm: Literal["ssd", "mamba1"] = "ssd"
    state_size: int | None = Field(None, gt=0)
    dt_rank: int = Field(64, gt=0)
    conv_width: int = Field(4, ge=2)
    chunk_size: int = Field(128, ge=4)  # at 720p and 81 frames, 75,600 tokens, smaller ones pass more states
    scan: Literal["serpentine", "raster"] = "serpentine"
    # True: the embedded text opens and closes each block's sequence as in the paper's block (§3.3), and the
    # mixers pass it on from block to block; cross-attention goes on reading Wan's own text. False: video only.
    text_recomposition: bool = True
    registers: bool = True  # one per latent frame, of one type: there is no pyramid
    temporal_branch: bool = True
    # False lets a frame's temporal branch see later frames. The paper's is causal, but written for the
    # autoregressive model; here all frames are made at once.
    temporal_causal: bool = True
    projection_order: Literal["dual", "literal"] = "dual"
    rope_on_ssm: bool = True

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def axes(self) -> tuple[int, int, int]:
        """Rotary channels of a head for the axes t, h, w: Wan's split, a third each, the rest to time."""
        third = 2 * (self.head_dim // 6)
        return (self.head_dim - 2 * third, third, third)

    @property
    def sequence_text(self) -> int:
        """Text slots at each end of a mixer's sequence."""
        return self.text_slots if self.mixer == "mm_dim" and self.text_recomposition else 0

    @property
    def mixer_config(self) -> ModelConfig:
        """The `ModelConfig` that `m4v.model`'s mixer is built from. Raises ValidationError on SSM sizes that clash."""
        return ModelConfig(
            width=self.width, heads=self.heads, text_dim=self.text_dim, text_slots=self.text_slots,
            rope_axes=self.axes, rope_theta=self.rope_theta, mixer="mm_dim", ssm=self.ssm,
            state_size=self.state_size, dt_rank=self.dt_rank, conv_width=self.conv_width,
            chunk_size=self.chunk_size, scan=self.scan, text_recomposition=self.text_recomposition,
            registers=self.registers, temporal_branch=self.temporal_branch,
            projection_order=self.projection_order, rope_on_ssm=self.rope_on_ssm,
        )  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> WanConfig:
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.mixer == "mm_dim":
            try:
                _ = self.mixer_config  # its own rules about state sizes
            except ValidationError as error:
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self


_PRESETS: Mapping[str, Mapping[str, object]] = {
    "1.3B": {"width": 1536, "heads": 12, "blocks": 30, "mlp_width": 8960},
    "14B": {"width": 5120, "heads": 40, "blocks": 40, "mlp_width": 13824},
}


def wan_preset(name: str, **changes: object) -> WanConfig:
    """The published sizes `1.3B` or `14B` with `changes`. Raises ConfigError for another name or a wrong field."""
    if name not in _PRESETS:
        near = difflib.get_close_matches(name, _PRESETS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else f"known presets: {', '.join(_PRESETS)}"
        raise ConfigError("unknown Wan preset", value=name, next_step=hint)
    return parse(WanConfig, {**_PRESETS[name], **changes}, f"Wan preset {name}")


class WanCheckpointConfig(FrozenModel):
    """What `config.json` of a checkpoint says: enough to rebuild the model and to go on training."""

    model: WanConfig
    flow: WanFlowConfig = WanFlowConfig()
    codec: dict[str, JsonValue] = {}
    text_encoder: dict[str, JsonValue] = {}
    weights: dict[str, str] = {}  # artifact ids of the imported weights that codec and text encoder name
    ema: bool = False  # `ema.safetensors` lies beside the raw weights
