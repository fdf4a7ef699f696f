"""VBench's constants as package data: the 16 dimensions with bounds, weights and groups. Torch-free."""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib import resources
from typing import Literal, Self

from pydantic import Field, model_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError

Group = Literal["quality", "semantic"]
_FILE = "constants.json"


class Dimension(FrozenModel):
    """`min` and `max` of the raw score, as fractions; `weight` among the dimensions of its group."""

    name: str
    group: Group
    min: float
    max: float
    weight: float = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"{self.name}: min {self.min} is not below max {self.max}")
        return self

    def term(self, raw: float) -> float:
        """Normalised score of a raw one, both fractions: affine, not clipped."""
        return (raw - self.min) / (self.max - self.min)


class Constants(FrozenModel):
    """`constants.json`, with where every figure is from."""

    source: str
    licence: str
    rule: str
    group_weights: dict[Group, float]
    dimensions: tuple[Dimension, ...]

    def names(self, group: Group | None = None) -> tuple[str, ...]:
        """Dimensions in the published order, all or of one group."""
        return tuple(d.name for d in self.dimensions if group in (None, d.group))


@cache
def constants() -> Constants:
    text = (resources.files("eval.vbench.data") / _FILE).read_text()
    return Constants.model_validate(json.loads(text))


DIMENSIONS = constants().names()
# They need more of a prompt than its words: what a detector looks for, a style, a scene.
STANDARD_ONLY = (
    "object_class", "multiple_objects", "color", "spatial_relationship", "scene", "appearance_style",
)  # fmt: skip
CUSTOM_DIMENSIONS = tuple(name for name in DIMENSIONS if name not in STANDARD_ONLY)


def dimension_name(name: str, where: str | None = None) -> str:
    """`subject_consistency`, also for `Subject Consistency`; raises InputError with near names for no dimension."""
    plain = "_".join(name.lower().replace("_", " ").split())
    if plain not in DIMENSIONS:
        near = difflib.get_close_matches(plain, DIMENSIONS, n=3, cutoff=0.5)
        step = f"did you mean {' or '.join(near)}?" if near else f"dimensions: {', '.join(DIMENSIONS)}"
        raise InputError("VBench has no such dimension", value=name, where=where, next_step=step)
    return plain
