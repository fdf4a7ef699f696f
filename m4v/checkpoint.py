"""Checkpoint folders: `model.safetensors` (fp32, consolidated), optional `ema.safetensors`, `config.json`.

Only safetensors and JSON are read, so nothing in a checkpoint can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from m4v.config import CheckpointConfig
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic
from m4v.model.transformer import M4VTransformer

MODEL, EMA, CONFIG = "model.safetensors", "ema.safetensors", "config.json"
_SHOWN = 5  # keys named in a message

__all__ = ["CONFIG", "EMA", "MODEL", "CheckpointConfig", "load_checkpoint", "read_config", "save_checkpoint"]


def save_checkpoint(
    directory: Path,
    config: CheckpointConfig,
    state_dict: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; `config.ema` is set from `ema`. Raises DataIntegrityError if the weights do not fit."""
    config = config.model_copy(update={"ema": ema is not None})
    expected = _expected(config)
    _compare(state_dict, expected, f"weights for {MODEL}")
    _write_weights(directory / MODEL, state_dict)
    if ema is not None:
        _compare(ema, expected, f"weights for {EMA}")
        _write_weights(directory / EMA, ema)
    text = json.dumps(config.canonical(), indent=1, sort_keys=True)
    write_atomic(directory / CONFIG, text.encode())


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    # Sorted, contiguous and own memory: equal weights give equal bytes.
    plain = {key: state[key].detach().to("cpu", torch.float32).contiguous() for key in sorted(state)}
    write_atomic(path, save(plain))


def read_config(path: Path) -> CheckpointConfig:
    """Parse a `config.json`; raises DataIntegrityError naming the first wrong key."""
    try:
        return CheckpointConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise DataIntegrityError(
            f"checkpoint configuration is not valid: {where}: {first['msg']}", where=str(path)
        ) from None


def load_checkpoint(
    path_of: Callable[[str], Path], ema: bool = True, device: str = "cpu"
) -> tuple[M4VTransformer, CheckpointConfig]:
    """The model of a checkpoint whose files `path_of` finds (`Artifact.path`, or `directory.joinpath`).

    Takes the EMA weights when there are some and `ema` is true. Raises DataIntegrityError naming a missing,
    unknown or misshapen tensor, or a file that is truncated or not safetensors.
    """
    config = read_config(path_of(CONFIG))
    path = path_of(EMA if ema and config.ema else MODEL)
    state = _read_weights(path)
    _compare(state, _expected(config), str(path))
    with torch.device("meta"):
        model = M4VTransformer(config.model)
    model.load_state_dict(state, assign=True)
    return model.to(device), config


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataIntegrityError("checkpoint has no such file", value=path.name, where=str(path.parent))
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataIntegrityError(
            f"weights are truncated or not in safetensors format ({error})",
            where=str(path),
            next_step="m4v artifacts verify, or import the weights again",
        ) from None
    return state


def _expected(config: CheckpointConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = M4VTransformer(config.model)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise DataIntegrityError on the first kind of difference, naming a few keys."""
    hint = "check the model section of config.json"
    if missing := sorted(set(expected) - set(state)):
        raise DataIntegrityError(
            f"{len(missing)} tensors are missing", value=missing[:_SHOWN], where=where, next_step=hint
        )
    if unknown := sorted(set(state) - set(expected)):
        raise DataIntegrityError(
            f"{len(unknown)} tensors are not part of this model", value=unknown[:_SHOWN], where=where, next_step=hint
        )
    wrong = [
        f"{key}: {tuple(value.shape)}, expected {expected[key]}"
        for key, value in sorted(state.items())
        if tuple(value.shape) != expected[key]
    ]
    if wrong:
        raise DataIntegrityError(
            f"{len(wrong)} tensors have another shape", value=wrong[:_SHOWN], where=where, next_step=hint
        )
