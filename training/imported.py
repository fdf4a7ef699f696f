"""The state of a model that starts from imported weights: read, held against the recipe, converted if asked to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError, DataIntegrityError
from m4v.model.convert import attention_to_mamba, sizes_of
from training.config import InitConfig, StartConfig


def imported_state(artifact: Artifact, start: StartConfig, config: InitConfig, seed: int) -> Mapping[str, Tensor]:
    """State dict of `config.model` from the `weights` artifact that `start` names.

    Tensors stay memory maps where they are taken as they are, and conversion copies one at a time, so that
    2.2 billion weights are in memory once. Raises ConfigError when sizes in the recipe are not those of the
    weights, DataIntegrityError when the artifact holds no such transformer.
    """
    published = read_tensors(artifact.folder())
    check_sizes({key: tuple(value.shape) for key, value in published.items()}, config, start.weights)
    if start.convert == "none":
        return published
    return attention_to_mamba(published, config.model, seed)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the safetensors files in `folder`, memory-mapped."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise DataIntegrityError(
                f"weights are truncated or not in safetensors format ({error})",
                where=path.name,
                next_step="m4v artifacts verify, or import the weights again",
            ) from None
    if not tensors:
        raise DataIntegrityError("imported weights hold no safetensors file", where=str(folder))
    return tensors


def check_sizes(shapes: Mapping[str, tuple[int, ...]], config: InitConfig, name: str) -> None:
    """Raise ConfigError naming the first field of the recipe's model that is not as in the weights."""
    for field, needs in sizes_of(shapes).items():
        has = getattr(config.model, field)
        if has != needs:
            raise ConfigError(
                f"model.{field} does not fit the imported weights {name!r}, which have {needs}",
                value=has,
                where="init",
                next_step=f"set model.{field} to {needs}",
            )
