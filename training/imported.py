"""Reads the tensors of imported weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m4v.core.errors import DataIntegrityError


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
