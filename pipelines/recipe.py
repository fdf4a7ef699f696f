"""Recipes: one YAML for a whole pipeline, resolved to a frozen, printable, hashable model.

    m4v plan demo --set train.57f.steps=3

A recipe may extend another (`extends: demo`) with a few deltas; lists whose items carry a `name` merge by
that name, and an item with `remove: true` goes. Unknown keys are refused with near names, and rules between
sections are checked on loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import Field, model_validator

from dataprep.config import AdapterConfig, CurateConfig, EncodeConfig, SourceConfig
from eval.config import EvaluateConfig, GateConfig, GenerateConfig
from m4v.config import ModelConfig, ScheduleConfig
from m4v.core.config import FrozenModel, parse
from m4v.core.stage import Resources
from pipelines.recipe_files import apply_override, read_recipe, shipped_recipes
from pipelines.web.config import ReportConfig
from training.config import RewardConfig, TrainConfig

__all__ = ["Profile", "Recipe", "SourceEntry", "load_recipe", "shipped_recipes"]


class SourceEntry(FrozenModel):
    """A collection and where it lies. `location` (a directory, `s3://…` or `asset:…`) is never in a key."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    location: str | None = None
    adapter: AdapterConfig

    @property
    def config(self) -> SourceConfig:
        return SourceConfig(name=self.name, adapter=self.adapter)


class Profile(FrozenModel):
    """How stages are launched on one kind of machine. `lock_file` names the target's environment."""

    launcher: str = Field("local", pattern=r"^local$")
    lock_file: str | None = "constraints.txt"
    default: Resources = Resources(ranks=1, threads=1, workers=1)
    stages: dict[str, Resources] = {}

    def resources(self, stage: str) -> Resources:
        return self.stages.get(stage, self.default)


class Recipe(FrozenModel):
    """A resolved recipe; `digest()` is its identity, the YAML it came from is not."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str = ""
    seed: int = Field(0, ge=0)
    sources: tuple[SourceEntry, ...] = Field(min_length=1)
    curate: CurateConfig
    encode: EncodeConfig
    model: ModelConfig
    schedule: ScheduleConfig
    train: tuple[TrainConfig, ...] = Field(min_length=1)
    reward: RewardConfig | None = None
    generate: GenerateConfig
    evaluate: EvaluateConfig
    gate: GateConfig
    report: ReportConfig
    profile: str = "local"
    profiles: dict[str, Profile] = {"local": Profile()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("sources", [s.name for s in self.sources])
        _unique("train", [t.name for t in self.train])
        if self.profile not in self.profiles:
            raise ValueError(f"profile {self.profile!r} is not one of {', '.join(sorted(self.profiles))}")
        return self

    @property
    def active_profile(self) -> Profile:
        return self.profiles[self.profile]


def _unique(section: str, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{section}: the name {twice[0]!r} stands twice")


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name or a YAML file by path and apply `a.b=c` overrides.

    Raises ConfigError naming the key, the value and the fix.
    """
    data = read_recipe(name)
    for override in overrides:
        apply_override(data, override)
    return parse(Recipe, data, f"recipe {name}")
