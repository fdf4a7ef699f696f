"""Checkpoint folders of the Wan variant: `model.safetensors`, optional `ema.safetensors`, `config.json`.

Float32, diffusers' keys. Only safetensors and JSON are read, so nothing in a checkpoint can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from m4v.core.config import FrozenModel
from m4v.core.errors import DataIntegrityError
from m4v.core.storage import write_atomic
from m4v.wan.compare import compare_tensors
from m4v.wan.config import WanConfig, WanFlowConfig
from m4v.wan.initialise import empty_wan
from m4v.wan.transformer import WanTransformer

MODEL, EMA, CONFIG = "model.safetensors", "ema.safetensors", "config.json"


class WanCheckpointConfig(FrozenModel):
    """What `config.json` of a checkpoint says: enough to rebuild the model and to go on training."""

    model: WanConfig
    flow: WanFlowConfig = WanFlowConfig()
    weights: dict[str, JsonValue] = {}  # which VAE and text encoder it was trained with
    ema: bool = False  # `ema.safetensors` lies beside the raw weights


def save_wan(
    directory: Path,
    config: WanCheckpointConfig,
    state_dict: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; `config.ema` is set from `ema`. Raises DataIntegrityError if the weights do not fit."""
    config = config.model_copy(update={"ema": ema is not None})
    for name, state in ((MODEL, state_dict), (EMA, ema)):
        if state is None:
            continue
        _check(state, config, f"weights for {name}")
        # Sorted, contiguous and own memory: equal weights give equal bytes.
        plain = {key: state[key].detach().to("cpu", torch.float32).contiguous() for key in sorted(state)}
        write_atomic(directory / name, save(plain))
    write_atomic(directory / CONFIG, json.dumps(config.canonical(), indent=1, sort_keys=True).encode())


def load_wan(
    path_of: Callable[[str], Path], ema: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[WanTransformer, WanCheckpointConfig]:
    """The model of a checkpoint whose files `path_of` finds (`Artifact.path`, or `directory.joinpath`).

    Takes the EMA weights when there are some and `ema` is true; recurrence and norms aside, parameters become
    `dtype`. Raises DataIntegrityError naming a missing, unknown or misshapen tensor, a wrong key of
    config.json, or a file that is missing, truncated or not safetensors.
    """
    config = read_wan_config(path_of(CONFIG))
    path = path_of(EMA if ema and config.ema else MODEL)
    state = _read(path)
    _check(state, config, str(path))
    model = empty_wan(config.model)
    model.load_state_dict(state, assign=True)
    model.restore_rotary()
    model.cast(dtype)
    model.to(device)
    return model, config


def read_wan_config(path: Path) -> WanCheckpointConfig:
    """Parse a checkpoint's `config.json`; raises DataIntegrityError naming the first wrong key."""
    if not path.is_file():
        raise DataIntegrityError("checkpoint has no such file", value=path.name, where=str(path.parent))
    try:
        return WanCheckpointConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "(root)"
        raise DataIntegrityError(
            f"checkpoint configuration is not valid: {where}: {first['msg']}", where=str(path)
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
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


def _check(state: Mapping[str, Tensor], config: WanCheckpointConfig, where: str) -> None:
    found = {key: tuple(value.shape) for key, value in state.items()}
    expected = {key: tuple(value.shape) for key, value in empty_wan(config.model).state_dict().items()}
    compare_tensors(found, expected, where, "check the model section of config.json")
