"""Folders of VAE weights: `config.json` and `diffusion_pytorch_model.safetensors`, keys as published.

Only JSON and safetensors are read, so nothing in a folder can be executed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from m4v.core.errors import InputError
from m4v.core.storage import write_atomic
from m4v.tensor_files import Shape, read_weights, shapes_of, write_tensors
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import IMPORT_WEIGHTS, VaeConfig, read_vae_config

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def expected_shapes(config: VaeConfig) -> dict[str, Shape]:
    """Key and shape of every tensor of the model that `config` describes; takes no memory."""
    with torch.device("meta"):
        return shapes_of(CausalVideoVae(config).state_dict())


def save_vae(directory: Path, vae: CausalVideoVae) -> None:
    """Write the folder, weights in float32. Equal models give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    state = vae.state_dict()
    write_tensors(directory / WEIGHTS, {key: value.to("cpu", torch.float32) for key, value in state.items()})
    write_atomic(directory / CONFIG, json.dumps(vae.config.canonical(), indent=1, sort_keys=True).encode())


def load_vae(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CausalVideoVae:
    """The VAE of a folder, in evaluation mode and without gradients of its parameters.

    On CUDA the weights lie in channels_last_3d order, which cuDNN's half-precision kernels want. Raises
    InputError for a missing file, DataIntegrityError naming tensors that are missing, unknown, misshapen or
    no floats, or a file that is truncated or no safetensors, ConfigError for a `config.json` of another model.
    """
    config = read_vae_config(directory / CONFIG)
    path = directory / WEIGHTS
    if not path.is_file():
        raise InputError("VAE has no such file", value=path.name, where=str(directory), next_step=IMPORT_WEIGHTS)
    state = read_weights(path, expected_shapes(config))
    with torch.device("meta"):
        vae = CausalVideoVae(config)
    vae.load_state_dict(state, assign=True)
    vae.to(device, dtype).requires_grad_(False).eval()
    if torch.device(device).type == "cuda":
        vae.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return vae
