"""GPU types that an estimate can be made for."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from m4v.core.errors import ConfigError

GIB = 1 << 30


class Gpu(NamedTuple):
    """`memory_bytes` as CUDA tells it; dense peak in TFLOP/s, bfloat16 on tensor cores and plain float32."""

    name: str
    memory_bytes: int
    bfloat16: float
    float32: float


# Peaks: NVIDIA's data sheets, half of what they print with sparsity. Memory: what a process can see of the card.
_ALL = (
    Gpu("h200", 139 * GIB, 989.4, 66.9),
    Gpu("h100-80gb", 79 * GIB, 989.4, 66.9),
    Gpu("a100-80gb", 79 * GIB, 312.0, 19.5),
    Gpu("a100-40gb", 39 * GIB, 312.0, 19.5),
    Gpu("l40s", 44 * GIB, 362.05, 91.6),
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def gpu_of(name: str) -> Gpu:
    """Raises ConfigError with near names for a type that is not known."""
    if name not in GPUS:
        near = difflib.get_close_matches(name, list(GPUS), n=2, cutoff=0.4)
        step = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(GPUS)}"
        raise ConfigError("no such GPU type", value=name, where="profile.gpu", next_step=step)
    return GPUS[name]
