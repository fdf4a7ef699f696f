"""GPU types that an estimate can be made for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from m4v.core.errors import ConfigError

GIB = 1 << 30


class Peak(NamedTuple):
    """Dense peak in TFLOP/s: matrix products in bfloat16 on tensor cores, and plain float32."""

    bfloat16: float
    float32: float


# By name as CUDA tells it. NVIDIA's data sheets; where they print the rate with sparsity, half of it.
_HOPPER_SXM = Peak(989.4, 66.9)  # H100 Tensor Core GPU Architecture whitepaper, table 2; H200 data sheet: the same
_AMPERE = Peak(312, 19.5)  # A100 Tensor Core GPU Architecture whitepaper, table 1
PEAKS: Mapping[str, Peak] = {
    "NVIDIA H100 80GB HBM3": _HOPPER_SXM,
    "NVIDIA H100 PCIe": Peak(756, 51.2),  # H100 whitepaper, table 2
    "NVIDIA H100 NVL": Peak(835.5, 60),  # H100 NVL data sheet: 1,671 with sparsity
    "NVIDIA H200": _HOPPER_SXM,
    "NVIDIA H200 NVL": Peak(835.5, 60),  # H200 data sheet: 1,671 with sparsity
    "NVIDIA GH200 480GB": _HOPPER_SXM,
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA A100-PCIE-40GB": _AMPERE,
    "NVIDIA A100 80GB PCIe": _AMPERE,
    "NVIDIA L40S": Peak(362.05, 91.6),  # L40S data sheet
    "NVIDIA L4": Peak(121, 30.3),  # L4 data sheet: 242 with sparsity
    "NVIDIA A10": Peak(125, 31.2),  # A10 data sheet
}


class Gpu(NamedTuple):
    """`memory_bytes` as CUDA tells it; peaks as in `Peak`; `bandwidth` of its memory in TB/s (data sheets)."""

    name: str
    memory_bytes: int
    bfloat16: float
    float32: float
    bandwidth: float


# Memory: what a process can see of the card.
_ALL = (
    Gpu("h200", 139 * GIB, *PEAKS["NVIDIA H200"], 4.8),
    Gpu("h100-80gb", 79 * GIB, *PEAKS["NVIDIA H100 80GB HBM3"], 3.35),
    Gpu("a100-80gb", 79 * GIB, *PEAKS["NVIDIA A100-SXM4-80GB"], 2.039),
    Gpu("a100-40gb", 39 * GIB, *PEAKS["NVIDIA A100-SXM4-40GB"], 1.555),
    Gpu("l40s", 44 * GIB, *PEAKS["NVIDIA L40S"], 0.864),
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def gpu_of(name: str) -> Gpu:
    """Raises ConfigError with near names for a type that is not known."""
    if name not in GPUS:
        near = difflib.get_close_matches(name, list(GPUS), n=2, cutoff=0.4)
        step = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(GPUS)}"
        raise ConfigError("no such GPU type", value=name, where="profile.gpu", next_step=step)
    return GPUS[name]
