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

from m4v.core.errors import ConfigError
from m4v.scores import open_scorer
from m4v.scores.config import ScorerConfig
from m4v.scores.interface import Scorer
from training.config import WeightedScorer
from training.reward.watch import HELD_OUT

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
    """Weighted reward (b,) with gradient; without, each scorer's own scores (b,) by metric name and the frames' unit
    vectors (b, d), by a scorer that is held out where there is one."""

    reward: Tensor
    by_scorer: dict[str, Tensor]
    features: Tensor


class Rewards:
    """All scorers of a stage: those of the reward, and those held out of it, which are only watched."""

    def __init__(self, scores: Sequence[WeightedScore], held_out: Sequence[WeightedScore] = ()) -> None:
        self._scores = {f"score_{s.scorer.name}": s for s in scores}
        self._held_out = {f"{HELD_OUT}{s.scorer.name}": s for s in held_out}
        if len(self._scores) < len(scores) or len(self._held_out) < len(held_out):
            raise ConfigError("two scorers of a reward have one name", value=[s.scorer.name for s in scores])

    @property
    def names(self) -> tuple[str, ...]:
        """Metric names of all scores."""
        return (*self._scores, *self._held_out)

    def __call__(self, frames: Tensor, captions: Sequence[str]) -> Scored:
        """Score frames (b, 3, H, W) in [0, 1] against their captions, in float32; every network runs once."""
        found = {name: _score(s, frames, captions) for name, s in self._scores.items()}
        reward = torch.stack([s.weight * found[name][0] for name, s in self._scores.items()]).sum(dim=0)
        with torch.no_grad():
            watched = {name: _score(s, frames, captions) for name, s in self._held_out.items()}
        scores = {name: score.detach() for name, (score, _) in (found | watched).items()}
        _, features = next(iter((watched or found).values()))
        return Scored(reward, scores, features.detach())

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """(b, d) unit vectors of frames (b, 3, H, W) in [0, 1], by a scorer that is held out where there is one."""
        return next(iter((self._held_out or self._scores).values())).scorer.image_features(frames)


def _score(scored: WeightedScore, frames: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Scores (b,) and the frames' vectors (b, d)."""
    features = scored.scorer.image_features(frames)
    return scored.scorer.compare(features, scored.text_features(captions).to(frames.device)), features


def open_rewards(
    configs: Sequence[WeightedScorer],
    held_out: Sequence[ScorerConfig],
    folders: Mapping[str, Path],
    device: str = "cpu",
) -> Rewards:
    """Scorers of a recipe, self-tested; `folders`: those of imported weights. Raises InputError when a model's files
    have not been fetched or imported, ConfigError when two scorers have one name."""
    return Rewards(
        [WeightedScore(open_scorer(c.scorer, folders, device), c.weight) for c in configs],
        [WeightedScore(open_scorer(config, folders, device), 0.0) for config in held_out],
    )
