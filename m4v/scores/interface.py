"""The scorer contract, shared by ConSE and the scores that need weights of their own (HPSv2, CLIP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Scorer(Protocol):
    """A frozen score; gradients flow to the frames. A frame's score does not depend on its batch."""

    @property
    def name(self) -> str:
        """Name under which the score is published."""
        ...

    @property
    def digest(self) -> str:
        """Identity: weights, preprocessing and algorithm."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(n, d) features of captions, to be computed once."""
        ...

    def image_features(self, frames: Tensor) -> Tensor:
        """(B, d) unit vectors of frames (B, 3, H, W) in [0, 1]."""
        ...

    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B,) fp32 score of row b of `image_features` against row b of `text_features`."""
        ...

    def score(self, frames: Tensor, text_features: Tensor) -> Tensor:
        """(B,) fp32 score of frames (B, 3, H, W) in [0, 1] against row b of (B, d) features."""
        ...
