"""Checkpoint folders of the Wan variant: `model.safetensors`, optional `ema.safetensors`, `config.json`.

As in `m4v.checkpoint`: float32, only safetensors and JSON are read, a folder with a pickle in it is refused. Keys
are diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from m4v.checkpoint import write_weights
from m4v.checkpoint_files import CONFIG, EMA, MODEL, read_config_of, refuse_pickles, write_config
from m4v.tensor_files import compare_shapes, read_weights, shapes_of
from m4v.wan.config import WanCheckpointConfig
from m4v.wan.initialise import empty_wan
from m4v.wan.transformer import WanTransformer

__all__ = ["WanCheckpointConfig", "load_wan", "read_wan_config", "save_wan"]


def save_wan(
    directory: Path,
    config: WanCheckpointConfig,
    state_dict: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; `config.ema` is set from `ema`. Raises DataIntegrityError if the weights do not fit."""
    config = config.model_copy(update={"ema": ema is not None})
    expected = shapes_of(empty_wan(config.model).state_dict())
    for name, state in ((MODEL, state_dict), (EMA, ema)):
        if state is not None:
            compare_shapes(shapes_of(state), expected, f"weights for {name}")
            write_weights(directory / name, state)
    write_config(directory, config)


def load_wan(
    path_of: Callable[[str], Path], ema: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[WanTransformer, WanCheckpointConfig]:
    """The model of a checkpoint whose files `path_of` finds (`Artifact.path`, or `directory.joinpath`).

    Takes the EMA weights when there are some and `ema` is true; recurrence and norms aside, parameters become
    `dtype`. Raises DataIntegrityError naming a missing, unknown or misshapen tensor, a wrong key of
    config.json, or a file that is missing, truncated or not safetensors.
    """
    refuse_pickles(path_of(CONFIG).parent)
    config = read_wan_config(path_of(CONFIG))
    model = empty_wan(config.model)
    path = path_of(EMA if ema and config.ema else MODEL)
    model.load_state_dict(read_weights(path, shapes_of(model.state_dict())), assign=True)
    model.restore_rotary()
    model.cast(dtype)
    model.to(device)
    return model, config


def read_wan_config(path: Path) -> WanCheckpointConfig:
    """Parse a checkpoint's `config.json`; raises DataIntegrityError naming the first wrong key."""
    return read_config_of(path, WanCheckpointConfig)
