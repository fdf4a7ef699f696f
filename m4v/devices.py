"""What a config's words for devices and types are to torch."""

from __future__ import annotations

import torch

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
