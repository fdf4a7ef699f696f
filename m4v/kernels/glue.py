"""Whether the blocks of a model run their glue (norms, gates, re-composition, pooling) on Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from m4v.kernels.selection import fuses_glue, glue_choice, interpreted

LEAST_HEAD = 16  # channels


def uses_glue(x: Tensor, head_dim: int) -> bool:
    """Whether blocks whose hidden states are like x take the kernels: on CUDA, 16-bit, or float32 too when asked for
    by name, heads a power of two wide. On the CPU only under Triton's interpreter (TRITON_INTERPRET=1), for tests."""
    runs = x.is_cuda or (x.is_cpu and interpreted())
    if not runs or head_dim < LEAST_HEAD or head_dim & (head_dim - 1) or not fuses_glue():
        return False
    return x.dtype in (torch.bfloat16, torch.float16) or (x.dtype == torch.float32 and glue_choice() == "triton")
