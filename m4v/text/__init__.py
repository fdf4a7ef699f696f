"""Text encoders. Importing this package loads no torch; `open_text_encoder` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4v.text.config import TextEncoderConfig
    from m4v.text.interface import TextEncoder


def open_text_encoder(
    config: TextEncoderConfig, folders: Mapping[str, Path] | None = None, device: str = "cpu"
) -> TextEncoder:
    """The encoder that `config` names; its features come back on the CPU.

    `folders`: local folder of each imported `weights` artifact by its name in the recipe
    (`StageContext.weights_folders`). Raises InputError when files have not been fetched or imported.
    """
    from m4v.text.config import MiniLmConfig, Umt5Config

    if isinstance(config, MiniLmConfig):
        from m4v.text.minilm import open_minilm

        return open_minilm(config)
    if isinstance(config, Umt5Config):
        from m4v.wan.text import open_umt5_encoder

        return open_umt5_encoder(config, folders or {}, device)
    from m4v.text.t5_clip import open_t5_clip

    return open_t5_clip(config, folders or {}, device)
