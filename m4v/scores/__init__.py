"""Image-text scores: of the reward, of its monitors and of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from m4v.scores.config import ConseConfig, ScorerConfig

if TYPE_CHECKING:
    from m4v.scores.interface import Scorer


def open_scorer(config: ScorerConfig, folders: Mapping[str, Path], device: str = "cpu") -> Scorer:
    """A score that passed its self-test. `folders`: those of imported weights by the recipe's names.

    Raises InputError when weights are not here, ConfigError or DataIntegrityError when they do not fit.
    """
    if isinstance(config, ConseConfig):
        from m4v.scores.conse import open_conse

        return open_conse(config, device)
    from m4v.scores.clip import open_clip_score

    return open_clip_score(config, folders, device)
