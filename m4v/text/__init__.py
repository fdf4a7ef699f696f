"""Text encoders. Importing this package loads no torch; `open_text_encoder` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4v.text.config import TextEncoderConfig
    from m4v.text.interface import TextEncoder


def open_text_encoder(config: TextEncoderConfig) -> TextEncoder:
    """The encoder that `config` names; raises InputError when its files have not been fetched."""
    from m4v.text.minilm import open_minilm

    return open_minilm(config)
