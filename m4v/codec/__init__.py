"""Latent codecs. Importing this package loads no torch; `open_codec` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4v.codec.config import CodecConfig
    from m4v.codec.interface import LatentCodec


def open_codec(config: CodecConfig, folders: Mapping[str, Path] | None = None, device: str = "cpu") -> LatentCodec:
    """The codec that `config` names, on `device` where it has weights.

    `folders`: local folder of each entry of the recipe's `weights` section. Raises ConfigError when the
    codec's entry is not among them or is of another model, InputError when its files are missing,
    DataIntegrityError when they do not fit.
    """
    from m4v.codec.config import DctCodecConfig, WanVaeConfig

    if isinstance(config, DctCodecConfig):
        from m4v.codec.dct import DctCodec

        return DctCodec(config)
    if isinstance(config, WanVaeConfig):
        from m4v.codec.wan_vae import open_wan_codec

        return open_wan_codec(config, folders or {}, device)
    from m4v.codec.causal_vae import open_causal_vae

    return open_causal_vae(config, folders or {}, device)
