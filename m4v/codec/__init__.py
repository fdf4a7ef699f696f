"""Latent codecs. Importing this package loads no torch; `open_codec` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4v.codec.config import CodecConfig
    from m4v.codec.interface import LatentCodec


def open_codec(config: CodecConfig) -> LatentCodec:
    """The codec that `config` names."""
    from m4v.codec.dct import DctCodec

    return DctCodec(config)
