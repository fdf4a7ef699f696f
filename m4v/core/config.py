"""Base of every frozen configuration model, and errors with near names for what it refuses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from m4v.core.canonical import digest_json
from m4v.core.errors import ConfigError


class FrozenModel(BaseModel):
    """Immutable, unknown keys refused, no NaN; `digest()` is its identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def canonical(self) -> dict[str, object]:
        """The JSON form that is hashed, stored with a run and passed to a stage process."""
        return dict(self.model_dump(mode="json"))

    def key_config(self) -> dict[str, object]:
        """The part of `canonical` that a stage key holds: all of it, unless a model leaves out how a thing is done."""
        return self.canonical()

    def digest(self) -> str:
        """Raises ConfigError for a value that canonical JSON cannot carry (an integer past 2**53)."""
        try:
            return digest_json(self.canonical())
        except ValueError as error:
            raise ConfigError(f"value has no canonical form: {error}", where=type(self).__name__) from None


def weights_names(*configs: FrozenModel | None) -> tuple[str, ...]:
    """Names of imported weights that `configs` (a codec, a text encoder, …) read in their field `weights`, each
    once."""
    found = (getattr(config, "weights", None) for config in configs)
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str)))


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(model: type[ModelT], data: Mapping[str, object], where: str) -> ModelT:
    """Validate `data`; raises ConfigError naming the first wrong key, its value and near names."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise _first_error(model, data, error, where) from None


def _first_error(model: type[BaseModel], data: object, error: ValidationError, where: str) -> ConfigError:
    details = error.errors(include_url=False)
    # A misspelt key is also a missing one: the unknown name is the better news.
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = _key_of(data, first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = sorted(_fields_at(model, [str(p) for p in first["loc"][:-1]]))
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"unknown key {path}{more}", value=first["input"], where=where, next_step=hint)
    message = first["msg"].removeprefix("Value error, ")
    # A rule between keys names the values it is about; the whole section would hide them.
    shown = None if first["type"] == "missing" or isinstance(first["input"], Mapping) else first["input"]
    fix = f"{'add' if first['type'] == 'missing' else 'correct'} {path or 'the recipe'}"
    return ConfigError(
        f"{path}: {message}{more}" if path else f"{message}{more}", value=shown, where=where, next_step=fix
    )


def _key_of(data: object, loc: Sequence[int | str]) -> str:
    """`a.b.c` as `--set` takes it: list items by their `name`, tags of unions left out."""
    parts: list[str] = []
    for number, part in enumerate(loc):
        if isinstance(data, Mapping):
            if part not in data and number < len(loc) - 1:
                continue  # the tag of a union, which is no key
            data = data.get(part)
            parts.append(str(part))
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
            parts.append(str(data["name"]) if isinstance(data, Mapping) and "name" in data else str(part))
        else:
            parts.append(str(part))
    return ".".join(parts)


def _fields_at(model: type[BaseModel], path: list[str]) -> set[str]:
    """Names allowed at `path`, looking through lists, dicts, optionals and unions of models."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        found: list[type[BaseModel]] = []
        for candidate in models:
            field = candidate.model_fields.get(part)
            if field is not None:
                found.extend(_models_in(field.annotation))
        models = found or models  # a list index or a union tag keeps the level
    return {name for m in models for name in m.model_fields}


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
