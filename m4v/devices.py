"""What a config's words for devices and types are to torch."""

from __future__ import annotations

import torch
from torch import Tensor

from m4v.config import Dtype
from m4v.core.errors import ConfigError

DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def usable_device(name: str) -> torch.device:
    """Raises ConfigError for a name that torch does not know or a GPU that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("no device has this name", value=name, next_step="use cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"torch sees {torch.cuda.device_count()} CUDA devices", value=name, next_step="use --device cpu, or cuda:0"
        )
    return device


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device. To CUDA it goes through pinned memory: the copy waits in the device's queue, and
    the program does not wait until the device has come that far."""
    place = torch.device(device)
    return (tensor.pin_memory() if place.type == "cuda" else tensor).to(place, non_blocking=True)
