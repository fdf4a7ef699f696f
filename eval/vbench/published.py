"""Published VBench figures of other systems, each with its source. Torch-free.

They were sampled by others, under protocols of their own (wording of the prompts, sampler, length): they stand beside
ours and are never subtracted.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from eval.vbench.constants import DIMENSIONS
from m4v.core.config import FrozenModel

FIGURES = ("total", "quality", "semantic")


class PublishedRow(FrozenModel):
    """One system, in percent. `dimensions` holds the raw scores that were printed, all 16 or a few."""

    system: str
    source: str
    training_data: Literal["public", "proprietary"] | None
    note: str | None
    figures: dict[str, float]
    dimensions: dict[str, float]

    @property
    def all_figures(self) -> dict[str, float]:
        return {**self.figures, **self.dimensions}

    @property
    def complete(self) -> bool:
        """Whether its totals can be worked out again."""
        return set(self.dimensions) == set(DIMENSIONS)


class Published(FrozenModel):
    """`sources` says in words where the rows of each key of `source` are from."""

    unit: Literal["percent"]
    sources: dict[str, str]
    rows: tuple[PublishedRow, ...]


@cache
def published() -> Published:
    return Published.model_validate_json((resources.files("eval.vbench.data") / "published.json").read_text())
