"""The state of a model that starts from imported weights: read, held against the recipe, converted if asked to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m4v.checkpoint import CONFIG, MODEL, read_config
from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError
from m4v.model.convert import attention_to_mamba
from training.config import InitConfig, StartConfig
from training.sizes import check_sizes


def imported_state(artifact: Artifact, start: StartConfig, config: InitConfig, seed: int) -> Mapping[str, Tensor]:
    """State dict of `config.model` from the `weights` artifact that `start` names.

    Tensors stay memory maps where they are taken as they are, and conversion copies one at a time, so that
    2.2 billion weights are in memory once. Raises ConfigError when sizes in the recipe are not those of the
    weights, DataIntegrityError when the artifact holds no such transformer.
    """
    check_sizes(read_config(artifact.path(CONFIG)).model, config.model, start.weights)
    published = read_tensors(artifact.path(MODEL))
    if start.convert == "none":
        return published
    return attention_to_mamba(published, config.model, seed)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file as memory maps; raises DataIntegrityError when it is damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataIntegrityError(
            f"imported weights are truncated or not in safetensors format ({error})",
            where=str(path),
            next_step="m4v artifacts verify, then import the weights again",
        ) from None
    return tensors
