"""Which text encoder a dataset and a model use. Torch-free; `m4v.text.open_text_encoder` makes the encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from m4v.config import Dtype
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
        """Asset name -> sha256 of the packaged files the encoder reads."""
        return weights_digests(_MINILM_ASSETS)


class T5ClipConfig(FrozenModel):
    """T5 v1.1's last hidden states and CLIP's pooled text vector, PyramidFlow's pair (spec §6).

    `weights`: name of imported weights of the recipe (entry `pyramidflow-text`). `slots` and `clip_slots`:
    tokens that a text is cut or padded to. `embedding_dim` and `pooled_dim` are the widths of the two models, T5
    XXL and CLIP ViT-L/14 unless stated; a plan needs them before any file is read, opening checks them.
    `dtype`: what the networks compute in; features are float32 in any case.
    """

    kind: Literal["t5_clip"] = "t5_clip"
    weights: str = Field(min_length=1)
    slots: int = Field(128, ge=2)
    clip_slots: int = Field(77, ge=3)
    embedding_dim: int = Field(4096, gt=0)
    pooled_dim: int = Field(768, gt=0)
    dtype: Dtype = "bfloat16"


class Umt5Config(FrozenModel):
    """UMT5's last hidden states, Wan's text encoder; it has no pooled vector.

    `weights`: name of imported weights of the recipe (a Wan entry). `slots`: tokens that a text is cut or padded to.
    `embedding_dim`: width of the model, UMT5 XXL unless stated. `dtype`: what the network computes in.
    """

    kind: Literal["umt5"] = "umt5"
    weights: str = Field(min_length=1)
    slots: int = Field(512, ge=2)
    embedding_dim: int = Field(4096, gt=0)
    dtype: Dtype = "bfloat16"

    @property
    def pooled_dim(self) -> int:
        return 0


def _kind(value: object) -> str:
    kind = value.get("kind", "minilm") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


# Tagged by `kind`; without one it is the packaged encoder, which recipes wrote before there was another.
TextEncoderConfig = Annotated[
    Annotated[MiniLmConfig, Tag("minilm")]
    | Annotated[T5ClipConfig, Tag("t5_clip")]
    | Annotated[Umt5Config, Tag("umt5")],
    Discriminator(_kind),
]
