"""`score.NAME`: an image-text score of evenly spaced frames, by any scorer that a reward may have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.config import EvaluateConfig, score_name
from eval.metrics.clip import Clip, Metric, Reading, evenly
from m4v.scores.config import ScorerConfig

if TYPE_CHECKING:
    from m4v.scores.interface import Scorer


class FrameScore:
    """Mean score of evenly spaced frames under the prompt. Opens its models at the first clip; raises as `open_scorer`
    does when they are not here."""

    def __init__(self, config: ScorerConfig, frames: int, folders: Mapping[str, Path], device: str) -> None:
        self._config, self._frames, self._folders, self._device = config, frames, folders, device

    @cached_property
    def _scorer(self) -> Scorer:
        from m4v.scores import open_scorer

        return open_scorer(self._config, self._folders, self._device)

    def __call__(self, clip: Clip) -> Reading:
        import torch

        chosen = np.ascontiguousarray(clip.frames[evenly(len(clip.frames), self._frames)])
        torch.set_num_threads(1)  # a second one could sum in another order and change a digit
        scorer = self._scorer  # opened with gradients on: its self-test follows one
        frames = torch.from_numpy(chosen).to(self._device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            text = scorer.text_features([clip.prompt]).to(frames.device).expand(len(frames), -1)
            scores = scorer.score(frames, text)
        return Reading(float(scores.double().mean()))


def scorer_metrics(config: EvaluateConfig, folders: Mapping[str, Path], device: str = "cpu") -> list[Metric]:
    """The metrics of `config.scorers`, in their order; `folders`: those of imported weights."""
    return [
        Metric(
            score_name(scorer), 1, f"Score of {score_name(scorer).partition('.')[2]}", "cosine", True,
            f"mean score of {config.conse_frames} evenly spaced frames under the prompt, by {scorer.kind}",
            FrameScore(scorer, config.conse_frames, folders, device),
        )
        for scorer in config.scorers
    ]  # fmt: skip
