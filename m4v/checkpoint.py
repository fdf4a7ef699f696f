"""Checkpoint folders: `model.safetensors` (float32, consolidated), optional `ema.safetensors`, `config.json`.

Only safetensors and JSON are read, and a folder with a pickle in it is refused: nothing in a checkpoint can be
executed. In Python (`directory.joinpath` or an artifact's `path` finds the files):

    model, config = load_checkpoint(Path("checkpoint").joinpath)
    export_checkpoint(Path("checkpoint").joinpath, Path("exported"), dtype=torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from m4v.checkpoint_files import CONFIG, EMA, MODEL, read_config_of, refuse_pickles, write_config
from m4v.config import CheckpointConfig
from m4v.core.errors import InputError
from m4v.core.threads import together
from m4v.model.mamba import FLOAT32_PARAMETERS
from m4v.model.transformer import M4VTransformer
from m4v.tensor_files import Shape, compare_shapes, read_weights, shapes_of, write_tensors

DTYPES = (torch.float32, torch.bfloat16)

__all__ = [
    "CONFIG", "EMA", "MODEL", "CheckpointConfig", "export_checkpoint", "load_checkpoint", "read_config",
    "save_checkpoint", "write_weights",
]  # fmt: skip


def save_checkpoint(
    directory: Path,
    config: CheckpointConfig,
    state_dict: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; `config.ema` is set from `ema`. Raises DataIntegrityError if the weights do not fit."""
    config = config.model_copy(update={"ema": ema is not None})
    expected = _expected(config)
    states = {MODEL: state_dict} | ({} if ema is None else {EMA: ema})
    for name, state in states.items():
        compare_shapes(shapes_of(state), expected, f"weights for {name}")
    together(lambda item: write_weights(directory / item[0], item[1]), states.items())
    write_config(directory, config)


def load_checkpoint(
    path_of: Callable[[str], Path], ema: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[M4VTransformer, CheckpointConfig]:
    """The model of a checkpoint whose files `path_of` finds (`Artifact.path`, or `directory.joinpath`).

    Takes the EMA weights when there are some and `ema` is true; whatever type they are stored in, the parameters
    get `dtype`, those of the state-space recurrence at least float32. Raises DataIntegrityError naming a missing,
    unknown or misshapen tensor, a missing or broken file, or a pickle; InputError for another dtype.
    """
    _check_dtype(dtype)
    config, _, state = _read(path_of, ema)
    with torch.device("meta"):
        model = M4VTransformer(config.model)
    model.load_state_dict(state, assign=True)
    return model.cast(dtype).to(device), config


def export_checkpoint(
    path_of: Callable[[str], Path],
    directory: Path,
    ema: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write one set of a checkpoint's weights to a new folder: `model.safetensors` and `config.json`.

    The result is a checkpoint again. `ema` true takes the averaged weights, false the raw ones, None the averaged
    ones if there are some; the file's metadata says which (`weights`: `ema` or `raw`). In bfloat16 the parameters
    of the state-space recurrence (A_log, dt_bias, D) stay float32. Raises InputError for averaged weights that
    do not exist, a folder that is not empty, or another dtype; DataIntegrityError as `load_checkpoint`.
    """
    _check_dtype(dtype)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError("export needs a new or empty folder", value=str(directory))
    if ema and not read_config(path_of(CONFIG)).ema:
        raise InputError(
            "checkpoint has no averaged weights", where=str(path_of(CONFIG)), next_step="export the raw ones: ema=False"
        )
    config, name, state = _read(path_of, ema is not False)
    write_weights(directory / MODEL, state, dtype, {"weights": "ema" if name == EMA else "raw"})
    write_config(directory, config.model_copy(update={"ema": False}))


def read_config(path: Path) -> CheckpointConfig:
    """Parse a `config.json`; raises DataIntegrityError if it is missing, or naming the first wrong key."""
    return read_config_of(path, CheckpointConfig)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise InputError("weights are float32 or bfloat16", value=str(dtype))


def _read(path_of: Callable[[str], Path], ema: bool) -> tuple[CheckpointConfig, str, dict[str, Tensor]]:
    """Configuration, the name of the weights' file, and the weights, which fit the configuration."""
    path = path_of(CONFIG)
    refuse_pickles(path.parent)
    config = read_config(path)
    name = EMA if ema and config.ema else MODEL
    return config, name, read_weights(path_of(name), _expected(config))


def write_weights(
    path: Path, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, facts: dict[str, str] | None = None
) -> None:
    """Write one safetensors file in `dtype`, but the recurrence's parameters in float32; equal weights, equal bytes."""
    write_tensors(path, {key: value.detach().to("cpu", _stored(key, dtype)) for key, value in state.items()}, facts)


def _stored(key: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if key.rpartition(".")[2] in FLOAT32_PARAMETERS else dtype


def _expected(config: CheckpointConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        model = M4VTransformer(config.model)
    return shapes_of(model.state_dict())
