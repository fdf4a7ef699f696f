"""Recipes: one YAML for a whole pipeline, resolved to a frozen, printable, hashable model.

    m4v plan demo --set train.57f.steps=3

A recipe may extend another (`extends: demo`) with a few deltas; lists whose items carry a `name` merge by
that name, and an item with `remove: true` goes. Unknown keys are refused with near names, and rules between sections are checked on loading.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from dataprep.config import AdapterConfig, CurateConfig, EncodeConfig, SourceConfig
from eval.config import EvaluateConfig, GateConfig, GenerateConfig
from m4v.config import ModelConfig, ScheduleConfig
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError
from m4v.core.stage import Resources
from pipelines.web.config import ReportConfig
from training.config import RewardConfig, TrainConfig

RECIPES = "pipelines.recipes"
MAX_EXTENDS = 8


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


def shipped_recipes() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(RECIPES).iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name or a YAML file by path and apply `a.b=c` overrides.

    Raises ConfigError naming the key, the value and the fix.
    """
    data = _load_raw(name, ())
    for override in overrides:
        _apply(data, override)
    return parse(Recipe, data, f"recipe {name}")


def _load_raw(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    text, where = _read(name)
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe is not YAML: {' '.join(str(error).split())}", where=where) from None
    if not isinstance(data, dict):
        raise ConfigError("a recipe is a mapping", value=type(data).__name__, where=where)
    parent = data.pop("extends", None)
    if parent is None:
        return dict(data)
    if parent in seen or len(seen) >= MAX_EXTENDS:
        raise ConfigError("recipes extend each other in a circle", value=" -> ".join((*seen, parent)), where=where)
    return dict(_merge(_load_raw(str(parent), (*seen, name)), data))


def _read(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError("recipe file does not exist", value=name, next_step=f"use one of {shipped_recipes()}")
        return path.read_text(), name
    if name not in shipped_recipes():
        near = difflib.get_close_matches(name, shipped_recipes(), n=3)
        raise ConfigError(
            "unknown recipe",
            value=name,
            next_step=f"did you mean {' or '.join(near)}?"
            if near
            else f"use one of {', '.join(shipped_recipes())} or a .yaml",
        )
    return (resources.files(RECIPES) / f"{name}.yaml").read_text(), f"recipe {name}"


def _is_named_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "name" in v for v in value)


def _merge(base: Any, delta: Any) -> Any:
    if isinstance(base, dict) and isinstance(delta, dict):
        return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in delta.items()}}
    if _is_named_list(base) and _is_named_list(delta):
        return _merge_named(base, delta)
    return delta


def _merge_named(base: list[dict[str, Any]], delta: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items of `delta` change those of the same name, are added behind, or go with `remove: true`."""
    _unique_names(delta)
    known = {item["name"]: item for item in base}
    changed = {item["name"]: _merge(known.get(item["name"], {}), item) for item in delta}
    items = [changed.pop(item["name"], item) for item in base] + list(changed.values())
    return [item for item in items if not item.pop("remove", False)]


def _unique_names(items: list[dict[str, Any]]) -> None:
    names = [item["name"] for item in items]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError("two list items have one name", value=twice[0], next_step="rename one of them")


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, raw = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError("an override has the form a.b=c", value=override, where="--set")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError("override value is not YAML", value=raw, where=f"--set {key}") from None
    target: Any = data
    *parents, last = key.strip().split(".")
    for part in parents:
        target = _step(target, part, key)
    if isinstance(target, list):
        target[_position(target, last, key)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigError("override goes below a plain value", value=key, where="--set")


def _step(target: Any, part: str, key: str) -> Any:
    if isinstance(target, dict):
        return target.setdefault(part, {})
    if isinstance(target, list):
        return target[_position(target, part, key)]
    raise ConfigError("override goes below a plain value", value=key, where="--set")


def _position(items: list[Any], part: str, key: str) -> int:
    """A list item by its `name`, else by its number."""
    names = [item.get("name") for item in items if isinstance(item, Mapping)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = ", ".join(str(n) for n in names) or f"0 to {len(items) - 1}"
    raise ConfigError("no such list item", value=part, where=f"--set {key}", next_step=f"use one of {known}")
