"""Architecture of the causal video VAE, in the keys of its published `config.json`. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError, InputError

LEVELS = 4
IMPORT_WEIGHTS = "m4v weights check, then m4v weights import"
Widths = tuple[int, int, int, int]
Switches = tuple[bool, bool, bool, bool]
_HALVED: Switches = (True, True, True, False)
DownType = Literal["DownEncoderBlockCausal3D"]
UpType = Literal["UpDecoderBlockCausal3D"]
_DOWN: DownType = "DownEncoderBlockCausal3D"
_UP: UpType = "UpDecoderBlockCausal3D"


class VaeConfig(FrozenModel):
    """What `config.json` of the published model says; the defaults are the published values.

    Free are the widths, the depths, the latent channels and the groups of the norms. The rest has one
    value that this implementation knows, and any other is refused. `sample_size` is the tile that the
    model was trained at; `scaling_factor` is unused (PyramidFlow has constants of its own, `m4v.flow.latents`).
    """

    encoder_in_channels: Literal[3] = 3
    encoder_out_channels: int = Field(16, ge=1)
    encoder_layers_per_block: Widths = (2, 2, 2, 2)
    encoder_down_block_types: tuple[DownType, DownType, DownType, DownType] = (_DOWN, _DOWN, _DOWN, _DOWN)
    encoder_block_out_channels: Widths = (128, 256, 512, 512)
    encoder_spatial_down_sample: Switches = _HALVED
    encoder_temporal_down_sample: Switches = _HALVED
    encoder_block_dropout: tuple[float, float, float, float] = (0, 0, 0, 0)
    encoder_act_fn: Literal["silu"] = "silu"
    encoder_norm_num_groups: int = Field(32, ge=1)
    encoder_double_z: Literal[True] = True
    encoder_type: Literal["causal_vae_conv"] = "causal_vae_conv"
    decoder_in_channels: int = Field(16, ge=1)
    decoder_out_channels: Literal[3] = 3
    decoder_layers_per_block: Widths = (3, 3, 3, 3)
    decoder_up_block_types: tuple[UpType, UpType, UpType, UpType] = (_UP, _UP, _UP, _UP)
    decoder_block_out_channels: Widths = (128, 256, 512, 512)
    decoder_spatial_up_sample: Switches = _HALVED
    decoder_temporal_up_sample: Switches = _HALVED
    decoder_block_dropout: tuple[float, float, float, float] = (0, 0, 0, 0)
    decoder_act_fn: Literal["silu"] = "silu"
    decoder_norm_num_groups: int = Field(32, ge=1)
    decoder_type: Literal["causal_vae_conv"] = "causal_vae_conv"
    sample_size: int = Field(256, ge=1)
    scaling_factor: float = 0.13025
    add_post_quant_conv: Literal[True] = True
    interpolate: Literal[False] = False
    downsample_scale: Literal[8] = 8

    @property
    def latent_channels(self) -> int:
        return self.encoder_out_channels

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decoder_in_channels != self.encoder_out_channels:
            raise ValueError(
                f"decoder_in_channels {self.decoder_in_channels} must be encoder_out_channels "
                f"{self.encoder_out_channels}: both are the latent's"
            )
        for side in ("encoder", "decoder"):
            self._check_side(side)
        for key in ("encoder_spatial_down_sample", "encoder_temporal_down_sample",
                    "decoder_spatial_up_sample", "decoder_temporal_up_sample"):  # fmt: skip
            if getattr(self, key) != _HALVED:
                raise ValueError(f"{key} must be {list(_HALVED)}: the latent has one pixel for 8 x 8 x 8")
        return self

    def _check_side(self, side: str) -> None:
        widths, groups = getattr(self, f"{side}_block_out_channels"), getattr(self, f"{side}_norm_num_groups")
        if any(width < 1 or width % groups for width in widths):
            raise ValueError(f"{side}_block_out_channels {list(widths)} must be multiples of the {groups} norm groups")
        if any(layers < 1 for layers in getattr(self, f"{side}_layers_per_block")):
            raise ValueError(f"{side}_layers_per_block needs at least one layer in each block")
        if any(getattr(self, f"{side}_block_dropout")):
            raise ValueError(f"{side}_block_dropout must be 0")


def parse_vae_config(data: Mapping[str, object], where: str) -> VaeConfig:
    """Published form, whose keys that begin with `_` (class, library version) are no part of the architecture.

    Raises ConfigError naming the first key that is unknown or has a value this implementation does not know.
    """
    return parse(VaeConfig, {key: value for key, value in data.items() if not key.startswith("_")}, where)


def read_vae_config(path: Path) -> VaeConfig:
    """Parse a `config.json`; raises InputError when it is missing or no JSON object, ConfigError as above."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            "VAE has no such file", value=path.name, where=str(path.parent), next_step=IMPORT_WEIGHTS
        ) from None
    except ValueError as error:
        raise InputError(f"VAE configuration is no JSON: {error}", where=str(path)) from None
    if not isinstance(data, dict):
        raise ConfigError("VAE configuration is no JSON object", value=data, where=str(path))
    return parse_vae_config(data, str(path))
