"""Folders of VAE weights: `config.json` and `diffusion_pytorch_model.safetensors`, keys as published.

Only JSON and safetensors are read, so nothing in a folder can be executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import write_atomic
from m4v.vae.autoencoder import CausalVideoVae
from m4v.vae.config import IMPORT_WEIGHTS, VaeConfig, read_vae_config

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
Shape = tuple[int, ...]
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 5  # tensors named in a message


def expected_shapes(config: VaeConfig) -> dict[str, Shape]:
    """Key and shape of every tensor of the model that `config` describes; takes no memory."""
    with torch.device("meta"):
        vae = CausalVideoVae(config)
    return {key: tuple(value.shape) for key, value in vae.state_dict().items()}


def save_vae(directory: Path, vae: CausalVideoVae) -> None:
    """Write the folder, weights in float32. Equal models give equal bytes."""
    state = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in vae.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / WEIGHTS, save({key: state[key] for key in sorted(state)}))
    write_atomic(directory / CONFIG, json.dumps(vae.config.canonical(), indent=1, sort_keys=True).encode())


def load_vae(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CausalVideoVae:
    """The VAE of a folder, in evaluation mode and without gradients of its parameters.

    On CUDA the weights lie in channels_last_3d order, which cuDNN's half-precision kernels want. Raises
    InputError for a missing file, DataIntegrityError naming tensors that are missing, unknown or misshapen,
    or a file that is truncated or no safetensors, ConfigError for a `config.json` of another model.
    """
    config = read_vae_config(directory / CONFIG)
    path = directory / WEIGHTS
    check_shapes(_shapes_in(path), expected_shapes(config), str(path))
    with torch.device("meta"):
        vae = CausalVideoVae(config)
    vae.load_state_dict(load_file(path, device=str(device)), assign=True)
    vae.to(dtype).requires_grad_(False).eval()
    if torch.device(device).type == "cuda":
        vae.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return vae


def _shapes_in(path: Path) -> dict[str, Shape]:
    if not path.is_file():
        raise InputError("VAE has no such file", value=path.name, where=str(path.parent), next_step=IMPORT_WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            headers = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            shapes = {key: tuple(header.get_shape()) for key, header in headers.items()}
            integers = sorted(key for key, header in headers.items() if header.get_dtype() not in _FLOATS)
    except SafetensorError as error:
        raise DataIntegrityError(
            f"weights are truncated or not in safetensors format ({error})", where=str(path), next_step=IMPORT_WEIGHTS
        ) from None
    if integers:
        raise DataIntegrityError("tensors are no floating-point numbers", value=integers[:_SHOWN], where=str(path))
    return shapes


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise DataIntegrityError on the first kind of difference, naming a few tensors."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = [
        f"{key}: {found[key]}, expected {shape}"
        for key, shape in sorted(expected.items())
        if key in found and found[key] != shape
    ]
    for kind, keys in (
        ("are missing", missing), ("are not part of the causal video VAE", unknown), ("have another shape", wrong),
    ):  # fmt: skip
        if keys:
            raise DataIntegrityError(
                f"{len(keys)} tensors {kind}", value=keys[:_SHOWN], where=where, next_step=IMPORT_WEIGHTS
            )
