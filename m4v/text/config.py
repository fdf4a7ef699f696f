"""Which text encoder a dataset and a model use. Torch-free; `m4v.text.open_text_encoder` makes the encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from m4v.core.asset_catalog import weights_digests
from m4v.core.config import FrozenModel

_MINILM_ASSETS = ("minilm", "minilm/config", "minilm/tokenizer")


class MiniLmConfig(FrozenModel):
    """all-MiniLM-L6-v2 (packaged, 384 numbers a token). `slots`: tokens a text is cut or padded to."""

    kind: Literal["minilm"] = "minilm"
    slots: int = Field(32, ge=3, le=512)

    @property
    def embedding_dim(self) -> int:
        return 384

    @property
    def pooled_dim(self) -> int:
        return 384

    def weights(self) -> dict[str, str]:
        """Asset name -> sha256 of the files the encoder reads."""
        return weights_digests(_MINILM_ASSETS)


# Becomes a union tagged by `kind` when T5 and CLIP join.
TextEncoderConfig = MiniLmConfig
