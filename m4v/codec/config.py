"""Which latent codec a dataset and a model use. Torch-free; `m4v.codec.open_codec` makes the codec."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer

from m4v.codec.shape import PATCH, PYRAMID, SPATIAL, TEMPORAL, TILE_MULTIPLE, WAN_TEMPORAL
from m4v.config import Dtype
from m4v.core.config import FrozenModel

PIXEL_MULTIPLE = SPATIAL * PATCH * PYRAMID  # of a side, where latents go into a pyramid
WAN_PIXEL_MULTIPLE = SPATIAL * PATCH


class DctCodecConfig(FrozenModel):
    """Training-free causal transform codec (`m4v/codec/dct.py`).

    `smoothing`: decode each block from itself and its eight neighbours (conditional mean under a
    Gauss-Markov picture), which removes block edges; without it, decode by the transposed transform.
    `time_stride`: 4 gives latents of the shape of Wan's, for models without a pyramid, and takes the sides they take.
    """

    kind: Literal["dct"] = "dct"
    smoothing: bool = True
    time_stride: Literal[4, 8] = TEMPORAL

    @property
    def pixel_multiple(self) -> int:
        return PIXEL_MULTIPLE if self.time_stride == TEMPORAL else WAN_PIXEL_MULTIPLE

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # What came later stands in the canonical form only when it is used, so that older digests hold.
        data: dict[str, object] = handler(self)
        if self.time_stride == TEMPORAL:
            del data["time_stride"]
        return data


class CausalVaeConfig(FrozenModel):
    """PyramidFlow's causal video VAE (`m4v/vae`) with imported weights.

    - weights: name of an entry of the recipe's `weights` section, made by `m4v weights import`.
    - dtype: what the network computes in; `bfloat16` is for GPUs and halves memory.
    - encode_window (frames), decode_window (latents): chunks of time. Larger ones are faster where pictures are
      small; values change by rounding only.
    - tile: edge in pixels of blended spatial tiles, none by default. Tiles are for GPUs that a whole picture
      does not fit; they change values, so encode and decode with what the model was trained on.
    - logvar: shards also keep the posterior's log-variance, and training draws from the posterior.

    Tensors alive at 768 x 1280 in bfloat16, besides 0.7 GB of weights and what cuDNN takes: encode 13 GB, decode
    and streaming 16 GB, whatever the length (with all that, 17.5 GB on an H200); decode in tiles of 256, 3 GB
    (streaming in tiles holds the cached frames of all of them: 16 GB); a reward's forward and backward pass 31 GB.
    """

    time_stride: ClassVar[int] = TEMPORAL
    pixel_multiple: ClassVar[int] = PIXEL_MULTIPLE

    kind: Literal["causal_vae"] = "causal_vae"
    weights: str = Field(min_length=1)
    dtype: Dtype = "float32"
    encode_window: int = Field(TEMPORAL, ge=TEMPORAL, multiple_of=TEMPORAL)
    decode_window: int = Field(1, ge=1)
    tile: int | None = Field(None, ge=TILE_MULTIPLE, multiple_of=TILE_MULTIPLE)
    logvar: bool = False


class WanVaeConfig(FrozenModel):
    """Wan2.1's causal video VAE (`m4v/wan/vae.py`, diffusers' `AutoencoderKLWan`) with imported weights.

    Four frames make a latent after the first, so lengths are 4k+1; a side is a multiple of 16 pixels for Wan's own
    transformer, and of 64 where a pyramid model trains on the latents.
    - weights: name of an entry of the recipe's `weights` section: a folder in diffusers' layout.
    - dtype: what the network computes in; `bfloat16` is for GPUs and halves memory.
    - logvar: shards also keep the posterior's log-variance, and training draws from the posterior.
    """

    time_stride: ClassVar[int] = WAN_TEMPORAL
    pixel_multiple: ClassVar[int] = WAN_PIXEL_MULTIPLE

    kind: Literal["wan_vae"] = "wan_vae"
    weights: str = Field(min_length=1)
    dtype: Dtype = "float32"
    logvar: bool = False


def _kind(value: object) -> str:
    kind = value.get("kind", "dct") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


# Tagged by `kind`; without one it is the transform codec, which recipes wrote before there was another.
CodecConfig = Annotated[
    Annotated[DctCodecConfig, Tag("dct")]
    | Annotated[CausalVaeConfig, Tag("causal_vae")]
    | Annotated[WanVaeConfig, Tag("wan_vae")],
    Discriminator(
        _kind,
        custom_error_type="codec_kind",
        custom_error_message="a codec is a section whose kind is dct, causal_vae or wan_vae",
    ),
]
