"""Keys and shapes that a component must hold: those of the model that the product builds from its config.

The builders are named, not imported: they check and change no byte of an artifact, so the code of models stays
out of the key of the `weights` stage, and tens of gigabytes are not imported anew whenever it changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from m4v.core.errors import DataIntegrityError, M4VError
from m4v.weights.components import Kind

Shapes = dict[str, tuple[int, ...]]
_BUILDERS: Mapping[Kind, str] = {
    "pyramidflow_dit": "m4v.weights.models:pyramidflow_dit",
    "pyramidflow_vae": "m4v.weights.models:pyramidflow_vae",
    "clip_text": "m4v.weights.models:clip_text",
    "t5": "m4v.weights.models:t5",
    "umt5": "m4v.weights.models:umt5",
    "wan_transformer": "m4v.weights.models:wan_transformer",
    "wan_vae": "m4v.weights.models:wan_vae",
}


@dataclass(frozen=True)
class Expected:
    """`shapes` by our key; `optional` ones may be absent (tied weights, buffers that are made anew); published
    keys under an `ignored` prefix belong to parts that the product does not use. `rename`: published key ->
    key of `shapes`."""

    shapes: Shapes
    optional: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    rename: Callable[[str], str] = str


def expected(kind: Kind, config: Mapping[str, object], where: str) -> Expected | None:
    """What a component of `kind` with this published config must hold; None where only the format is known.

    Raises DataIntegrityError (or ConfigError, from a model's own config) when no model fits the config.
    """
    if kind not in _BUILDERS:
        return None
    module, _, name = _BUILDERS[kind].partition(":")
    builder: Callable[[Mapping[str, object], str], Expected] = getattr(importlib.import_module(module), name)
    try:
        return builder(config, where)
    except M4VError:
        raise
    except Exception as error:  # each library has its own kind for a config that it does not take
        reason = " ".join(str(error).split())
        raise DataIntegrityError(f"no model can be built from the config ({reason})", where=where) from error
