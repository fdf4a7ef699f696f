"""Rewards of a frame under a caption: weighted sum of image-text scores behind `m4v.scores.interface.Scorer`.

The scorers stay outside the engine: frozen, never sharded, on this rank's device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from m4v.scores import open_scorer
from m4v.scores.interface import Scorer
from training.config import WeightedScorer

REMEMBERED_CAPTIONS = 4096


@dataclass
class WeightedScore:
    """One scorer, its weight, and the text features of captions met so far."""

    scorer: Scorer
    weight: float
    _features: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)

    def text_features(self, captions: Sequence[str]) -> Tensor:
        """(n, d), each caption computed once."""
        for caption in dict.fromkeys(captions):
            if caption not in self._features:
                with torch.no_grad():
                    self._features[caption] = self.scorer.text_features([caption])[0]
            self._features.move_to_end(caption)
        rows = torch.stack([self._features[caption] for caption in captions])
        while len(self._features) > REMEMBERED_CAPTIONS:
            self._features.popitem(last=False)
        return rows


@dataclass(frozen=True)
class Scored:
    """Weighted reward (b,) with gradient, and each scorer's own scores (b,) by name."""

    reward: Tensor
    by_scorer: dict[str, Tensor]


class Rewards:
    """All scorers of a stage."""

    def __init__(self, scores: Sequence[WeightedScore]) -> None:
        self._scores = tuple(scores)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.scorer.name for s in self._scores)

    def __call__(self, frames: Tensor, captions: Sequence[str]) -> Scored:
        """Score frames (b, 3, H, W) in [0, 1] against their captions, in float32."""
        by_scorer = {
            s.scorer.name: s.scorer.score(frames, s.text_features(captions).to(frames.device)) for s in self._scores
        }
        reward = torch.stack([s.weight * by_scorer[s.scorer.name] for s in self._scores]).sum(dim=0)
        return Scored(reward, {name: score.detach() for name, score in by_scorer.items()})


def open_rewards(configs: Sequence[WeightedScorer], folders: Mapping[str, Path], device: str = "cpu") -> Rewards:
    """Scorers of a recipe, self-tested; `folders`: those of imported weights. Raises InputError when a model's files
    have not been fetched or imported."""
    return Rewards([WeightedScore(open_scorer(c.scorer, folders, device), c.weight) for c in configs])
