"""Configuration of the `import` stage: latents that others computed, and what is claimed of them. Torch-free."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dataprep.encode_config import ShardConfig
from m4v.codec.config import CausalVaeConfig, CodecConfig
from m4v.core.config import FrozenModel
from m4v.text.config import MiniLmConfig, T5ClipConfig, TextEncoderConfig


class ImportConfig(FrozenModel):
    """Config of the `import` stage.

    - name: the collection's name, part of every clip id. licence: of all its clips.
    - layout: `pyramidflow` (JSON lines with `latent` and `text_fea` files), `fastvideo` (Parquet with the bytes, shape
      and type of latents) or `folders` (FastVideo's earlier `latent/`, `prompt_embed/`, `prompt_attention_mask/` of
      `.pt` files, listed by `videos2caption.json`). tables: names or globs of the files with rows; by default
      the layout's own.
    - codec, text_encoder: what the latents and features were made with; their weights are opened and give the digests
      by which datasets are kept apart. codec_digest: what the user states of the latents; must be the digest of
      `codec`, and must be stated for `folders`.
    - texts: `reuse` takes the saved features, `encode` makes them anew from the captions (always for `fastvideo`,
      whose features have neither mask nor pooled vector; `folders` have one with `pooled_prompt_embed/`).
    - fps: rate of the frames that were encoded, where a row names none.
    - check_clips: rows, spread over the collection, whose media (where they lie beside their rows) are encoded again
      and compared: the only proof that the codec is the one claimed. max_error: rms difference from the stored latent
      over the rms of that latent, at most.
    - scale: bounds of the standard deviation of all latents together once they are normalised as training does;
      latents that were normalised before they were saved fall below, those of other VAEs elsewhere.
    - state: digest of the collection when the import was asked for (`dataprep.sources.rows.tree_digest`): another one
      is another import.
    - max_rejected: share of the rows that may be unusable before the stage fails.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    state: str = Field(min_length=1)
    layout: Literal["pyramidflow", "fastvideo", "folders"]
    licence: str = "unstated"
    tables: tuple[str, ...] = ()
    codec: CodecConfig = CausalVaeConfig(weights="pyramidflow-vae")
    codec_digest: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    text_encoder: TextEncoderConfig = T5ClipConfig(weights="pyramidflow-text")
    texts: Literal["reuse", "encode"] = "encode"
    fps: float = Field(24, gt=0, le=240)
    check_clips: int = Field(3, ge=0)
    max_error: float = Field(0.35, gt=0)
    scale: tuple[float, float] = (0.5, 2.0)
    shards: ShardConfig = ShardConfig()
    max_rejected: float = Field(0.5, ge=0, le=1)
    max_caption_chars: int = Field(4000, ge=16)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.layout == "fastvideo" and self.texts == "reuse":
            raise ValueError("texts of this layout have neither mask nor pooled vector: texts must be `encode`")
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} is not [low, high]")
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """Names or globs of the files with rows."""
        own = {
            "pyramidflow": ("*.jsonl", "annotation/*.jsonl"),
            "fastvideo": ("*.parquet", "combined_parquet_dataset/*.parquet"),
            "folders": ("videos2caption.json", "*/videos2caption.json"),
        }
        return self.tables or own[self.layout]


def weights_of(config: ImportConfig) -> dict[str, str]:
    """Asset name -> sha256 of every packaged model that this config uses; imported ones are inputs."""
    encoder = config.text_encoder
    return encoder.weights() if isinstance(encoder, MiniLmConfig) else {}
