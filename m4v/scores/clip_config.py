"""CLIP-family scores (HPSv2, CLIP): which weights, sizes and preprocessing. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from m4v.config import Dtype
from m4v.core.asset_catalog import weights_digests
from m4v.core.config import FrozenModel

VOCABULARY = "clip-vocabulary"  # asset: CLIP's byte-pair merges
ClipPreprocessing = Literal["pad", "squash", "crop"]


class ClipTowers(FrozenModel):
    """Sizes of a CLIP model. Heads and activation do not follow from its tensors; the rest is checked against them.

    `activation`: OpenAI's own models have `quick_gelu`, those trained with open_clip mostly `gelu`.
    """

    embed_dim: int = Field(gt=0)
    patch: int = Field(gt=0)
    vision_width: int = Field(gt=0)
    vision_layers: int = Field(gt=0)
    vision_heads: int = Field(gt=0)
    text_width: int = Field(gt=0)
    text_layers: int = Field(gt=0)
    text_heads: int = Field(gt=0)
    image_side: int = Field(224, gt=0)
    context: int = Field(77, gt=2)
    vocabulary: int = Field(49408, gt=2)
    activation: Literal["gelu", "quick_gelu"] = "gelu"


TowersName = Literal["vit-b-32-openai", "vit-l-14-openai", "vit-h-14"]
# Published sizes (open_clip 3.3.0, model_configs/ViT-{B-32,L-14,H-14}.json).
TOWERS: dict[TowersName, ClipTowers] = {
    "vit-b-32-openai": ClipTowers(
        embed_dim=512, patch=32, vision_width=768, vision_layers=12, vision_heads=12, text_width=512, text_layers=12,
        text_heads=8, activation="quick_gelu",
    ),
    "vit-l-14-openai": ClipTowers(
        embed_dim=768, patch=14, vision_width=1024, vision_layers=24, vision_heads=16, text_width=768, text_layers=12,
        text_heads=12, activation="quick_gelu",
    ),
    "vit-h-14": ClipTowers(
        embed_dim=1024, patch=14, vision_width=1280, vision_layers=32, vision_heads=16, text_width=1024, text_layers=24,
        text_heads=16,
    ),
}  # fmt: skip


class _ClipScoreConfig(FrozenModel):
    """`weights`: name of imported weights of the recipe. `preprocessing`: `pad` puts the longer side to the network's
    and fills up with black, `squash` makes the frame square, `crop` puts the shorter side there and takes the centre
    (of a 5:3 frame it drops 40 % of the width). `dtype`: what the towers compute in; features are normalised and
    compared in float32 in any case, since bfloat16 has steps of 0.002 where HPSv2's scores lie. `checkpointing`:
    blocks of the vision tower are computed again in the backward pass."""

    weights: str = Field(min_length=1)
    dtype: Dtype = "bfloat16"
    checkpointing: bool = True

    def packaged(self) -> dict[str, str]:
        """Asset name -> sha256 of the packaged files that the score reads."""
        return weights_digests([VOCABULARY])


class HpsConfig(_ClipScoreConfig):
    """HPSv2: a CLIP ViT-H/14 tuned on human choices (entry `hpsv2.1`); the cosine, not scaled."""

    kind: Literal["hpsv2"] = "hpsv2"
    weights: str = Field("hpsv2.1", min_length=1)
    towers: TowersName | ClipTowers = "vit-h-14"
    preprocessing: ClipPreprocessing = "pad"


class ClipConfig(_ClipScoreConfig):
    """CLIP's image-text cosine (entry `clip-vit-l-14`: OpenAI's, which HPSv2 does not descend from)."""

    kind: Literal["clip"] = "clip"
    weights: str = Field("clip-vit-l-14", min_length=1)
    towers: TowersName | ClipTowers = "vit-l-14-openai"
    preprocessing: ClipPreprocessing = "crop"
