"""Inputs of stages that are imported third-party weights."""

from __future__ import annotations

from m4v.core.config import FrozenModel, weights_names
from m4v.core.stage import WEIGHTS_INPUT

Inputs = dict[str, tuple[str, str]]


def imported(*configs: FrozenModel | None) -> Inputs:
    """Inputs `weights.NAME` of the imported weights that `configs` name."""
    names = [f"{WEIGHTS_INPUT}.{name}" for name in weights_names(*configs)]
    return {name: (name, "weights") for name in names}
