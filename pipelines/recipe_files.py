"""The text of recipes: shipped and own YAML files, `extends`, and overrides `a.b=c`, up to one plain mapping.

What the keys mean is checked afterwards, by `pipelines.recipe`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from m4v.core.errors import ConfigError

RECIPES = "pipelines.recipes"
MAX_EXTENDS = 8
SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, which YAML's own loader lets win in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys as they are written: constructing merges `<<` into them first."""
        made: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[object] = set()
        for key_node, _ in made.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return made


def shipped_recipes() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in resources.files(RECIPES).iterdir() if f.name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The mapping of a shipped recipe (by name) or a YAML file (by path) with all that it extends.

    Raises ConfigError for a file that is missing, no YAML or no mapping, and for a circle.
    """
    return _read_chain(name, ())


def _read_chain(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen or len(seen) >= MAX_EXTENDS:
        raise ConfigError("recipes extend each other in a circle", value=" -> ".join((*seen, name)), where=seen[-1])
    text, where = _text_of(name)
    data = parse_yaml(text, where)
    if not isinstance(data, dict):
        raise ConfigError(
            "a recipe is a mapping of keys", value=data, where=where, next_step="start from `extends: demo`"
        )
    parent = data.pop("extends", None)
    if parent is None:
        return dict(data)
    if not isinstance(parent, str):
        raise ConfigError("extends names one recipe", value=parent, where=where, next_step="extends: demo")
    return dict(merge(_read_chain(_beside(name, parent), (*seen, name)), data, where))


def _beside(child: str, parent: str) -> str:
    """A recipe file names another one from where it lies itself."""
    if Path(parent).suffix in SUFFIXES and Path(child).suffix in SUFFIXES:
        return str(Path(child).parent / parent)
    return parent


def _text_of(name: str) -> tuple[str, str]:
    """The text and what to call its place in a message."""
    known = shipped_recipes()
    if Path(name).suffix in SUFFIXES:
        try:
            return Path(name).read_text(encoding="utf-8"), name
        except FileNotFoundError:
            step = f"correct the path, or use one of {', '.join(known)}"
            raise ConfigError("recipe file does not exist", value=name, next_step=step) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"recipe file cannot be read: {reason}", value=name) from None
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(known)}, or a .yaml file"
        raise ConfigError("unknown recipe", value=name, next_step=hint)
    return (resources.files(RECIPES) / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"


def parse_yaml(text: str, where: str) -> object:
    """One YAML document; raises ConfigError with line and column."""
    try:
        found = yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError("this YAML is nested too deep", where=where, next_step="write it flatter") from None
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"this is not YAML: {problem}", where=place, next_step="correct it") from None
    try:
        return _apart(found)
    except RecursionError:
        step = "write out what the anchor stands for"
        raise ConfigError("an anchor of this YAML contains itself", where=where, next_step=step) from None


def _apart(value: object) -> object:
    """A copy in which no two places share a list or mapping, as aliases of one anchor do: an override of one place must
    not reach the others."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


# Extending


def _is_named_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "name" in v for v in value)


def merge(base: Any, delta: Any, where: str) -> Any:
    """`base` with the keys of `delta`, all the way down; lists of named items merge by name, others are replaced."""
    if isinstance(base, dict) and isinstance(delta, dict):
        return {**base, **{k: merge(base[k], v, where) if k in base else v for k, v in delta.items()}}
    if _is_named_list(base) and _is_named_list(delta):
        return _merge_named(base, delta, where)
    return delta


def _merge_named(base: list[dict[str, Any]], delta: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Items of `delta` change those of the same name, are added behind, or go with `remove: true`."""
    names = [item["name"] for item in delta]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError("two list items have one name", value=twice[0], where=where, next_step="rename one of them")
    known = {item["name"]: item for item in base}
    for item in delta:
        if item.get("remove") and item["name"] not in known:
            step = f"use one of {', '.join(map(str, known))}"
            raise ConfigError("there is no such item to remove", value=item["name"], where=where, next_step=step)
    changed = {item["name"]: merge(known.get(item["name"], {}), item, where) for item in delta}
    items = [changed.pop(item["name"], item) for item in base] + list(changed.values())
    return [item for item in items if not item.pop("remove", False)]


# Overrides


def apply_override(data: dict[str, Any], override: str) -> None:
    """Change `data` in place by `a.b=c`: list items go by their `name` or number, `c` is YAML.

    Raises ConfigError for another form and for a place that cannot be; unknown keys are found later.
    """
    key, separator, raw = override.partition("=")
    key = key.strip()
    if not separator or not key or not all(key.split(".")):
        step = "for example --set train.t2i.steps=100"
        raise ConfigError("an override has the form a.b=c", value=override, where="--set", next_step=step)
    value = parse_yaml(raw, f"--set {key}")
    target: Any = data
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        target = _step(target, part, key, parents[:depth])
    if isinstance(target, list):
        target[_position(target, last, key)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise _too_deep(key, parents)


def _step(target: Any, part: str, key: str, above: list[str]) -> Any:
    if isinstance(target, dict):
        return target.setdefault(part, {})
    if isinstance(target, list):
        return target[_position(target, part, key)]
    raise _too_deep(key, above)


def _too_deep(key: str, above: list[str]) -> ConfigError:
    return ConfigError(
        "override goes below a plain value", value=key, where="--set", next_step=f"set {'.'.join(above)} itself"
    )


def _position(items: list[Any], part: str, key: str) -> int:
    """A list item by its `name`, else by its number."""
    names = [item.get("name") for item in items if isinstance(item, Mapping)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = ", ".join(str(n) for n in names) or f"0 to {len(items) - 1}"
    raise ConfigError("no such list item", value=part, where=f"--set {key}", next_step=f"use one of {known}")
