"""Which image-text score is used. Torch-free; `m4v.scores.open_scorer` makes the score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from m4v.core.asset_catalog import weights_digests
from m4v.core.config import FrozenModel
from m4v.scores.clip_config import ClipConfig, HpsConfig
from m4v.text.config import MiniLmConfig

Preprocessing = Literal["whole", "squash", "crop"]


class ConseConfig(FrozenModel):
    """ConSE: EfficientNet-Lite2 tags mixed with MiniLM vectors of the ImageNet names. Not CLIP.

    `preprocessing`: `whole` keeps the frame and its proportions at the network's pixel count, `squash` makes
    it square, `crop` is the network's own way (shorter side, centre).
    """

    kind: Literal["conse"] = "conse"
    preprocessing: Preprocessing = "whole"

    @property
    def text_encoder(self) -> MiniLmConfig:
        return MiniLmConfig(slots=64)

    def packaged(self) -> dict[str, str]:
        """Asset name -> sha256 of the files the score reads."""
        return {**weights_digests(["efficientnet-lite2"]), **self.text_encoder.weights()}


def _kind(value: object) -> str:
    kind = value.get("kind", "conse") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


# Tagged by `kind`; without one it is the packaged score, which recipes wrote before there was another.
ScorerConfig = Annotated[
    Annotated[ConseConfig, Tag("conse")] | Annotated[HpsConfig, Tag("hpsv2")] | Annotated[ClipConfig, Tag("clip")],
    Discriminator(
        _kind,
        custom_error_type="scorer_kind",
        custom_error_message="a scorer is a section whose kind is conse, hpsv2 or clip",
    ),
]
