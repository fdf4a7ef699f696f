"""What launches of the SSD kernels have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def strides_of(*tensors: Tensor) -> list[int]:
    """Of samples, rows and heads, of each tensor (b, L, H, n)."""
    return [u.stride(i) for u in tensors for i in range(3)]


def constants_of(x: Tensor, b: Tensor, column: Tensor | None, bias: Tensor | None, softplus: bool) -> dict[str, Any]:
    """Compile-time arguments that the kernels share, but for a chunk's tokens."""
    return {
        "state": b.shape[-1], "size": x.shape[-1], "has_bias": bias is not None, "softplus": softplus,
        "has_column": column is not None, "precision": "tf32x3" if x.dtype == torch.float32 else "tf32",
    }  # fmt: skip
