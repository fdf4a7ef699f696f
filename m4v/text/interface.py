"""What every text encoder offers; T5 with CLIP comes behind the same interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    """Encoded texts, L slots each: `embedding` float32 (n, L, d), zero where `mask` bool (n, L) is false;
    `pooled` float32 (n, p), one vector a text."""

    embedding: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, rows: slice) -> TextFeatures:
        return TextFeatures(self.embedding[rows], self.mask[rows], self.pooled[rows])

    def to(self, device: torch.device | str) -> TextFeatures:
        return TextFeatures(self.embedding.to(device), self.mask.to(device), self.pooled.to(device))

    @staticmethod
    def cat(parts: Sequence[TextFeatures]) -> TextFeatures:
        return TextFeatures(
            torch.cat([p.embedding for p in parts]),
            torch.cat([p.mask for p in parts]),
            torch.cat([p.pooled for p in parts]),
        )


class TextEncoder(Protocol):
    """A frozen encoder; the features of a text do not depend on the texts beside it."""

    @property
    def digest(self) -> str:
        """Identity: equal digests give equal features."""
        ...

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of `texts`; the empty string gives the null text of classifier-free guidance."""
        ...
