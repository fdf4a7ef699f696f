"""A Wan attention model back into a folder as it is published, for tools that read one of the two layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m4v.checkpoint import CONFIG, write_weights
from m4v.core.errors import ConfigError, InputError
from m4v.core.storage import write_atomic
from m4v.tensor_files import compare_shapes, shapes_of
from m4v.wan.config import WanConfig
from m4v.wan.initialise import empty_wan
from m4v.wan.keys import Layout, to_original
from m4v.wan.published_config import published_fields

WEIGHTS = "diffusion_pytorch_model.safetensors"


def export_published(
    directory: Path,
    config: WanConfig,
    state: Mapping[str, Tensor],
    layout: Layout = "diffusers",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json` and one safetensors file; `state` has diffusers' keys, as everywhere here.

    Raises ConfigError for a model with MM-DiM, which no published layout can hold, InputError for a folder that
    is not empty, DataIntegrityError if the weights do not fit the config.
    """
    if config.mixer != "attention":
        raise ConfigError(
            "only attention models have a published layout", value=config.mixer, where="mixer",
            next_step="save_wan keeps a model with MM-DiM",
        )  # fmt: skip
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError("export needs a new or empty folder", value=str(directory))
    compare_shapes(shapes_of(state), shapes_of(empty_wan(config).state_dict()), "weights to export")
    directory.mkdir(parents=True, exist_ok=True)
    named = {to_original(key) if layout == "original" else key: value for key, value in state.items()}
    write_weights(directory / WEIGHTS, named, dtype, {"format": "pt"})
    write_atomic(directory / CONFIG, json.dumps(published_fields(config, layout), indent=2).encode())
