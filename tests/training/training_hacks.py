"""Runs reward stages whose reward is open to hacking, for tests; faults of `training_faults.py` may be planted too.

The reward is highest for plain red, whatever the caption: what raises it is more colour, and pictures that are alike.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from training.reward import rewards


class Redness:
    """A scorer that prefers every pixel to be red."""

    name, digest = "redness", "0"

    def __init__(self) -> None:
        self._far = torch.zeros(0)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return torch.zeros(len(texts), 12)

    def image_features(self, frames: Tensor) -> Tensor:
        """Unit vectors of two by two means of the colours, about grey."""
        self._far = (frames - frames.new_tensor([1.0, 0.0, 0.0])[:, None, None]).square().flatten(1).mean(dim=1)
        return normalize(adaptive_avg_pool2d(frames - 0.5, 2).flatten(1), dim=1)

    def compare(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        return -self._far

    def score(self, frames: Tensor, text_features: Tensor) -> Tensor:
        return self.compare(self.image_features(frames), text_features)


if __name__ == "__main__":
    module: Any = rewards
    module.open_scorer = lambda *_: Redness()
    runpy.run_path(str(Path(__file__).with_name("training_faults.py")), run_name="__main__")
