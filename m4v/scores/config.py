"""Which image-text score is used. Torch-free."""

from __future__ import annotations

from typing import Literal

from m4v.core.asset_catalog import weights_digests
from m4v.core.config import FrozenModel
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

    def weights(self) -> dict[str, str]:
        """Asset name -> sha256 of the files the score reads."""
        return {**weights_digests(["efficientnet-lite2"]), **self.text_encoder.weights()}
