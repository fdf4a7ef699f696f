"""The scans and the convolution of the Mamba mixer on CUDA kernels: our own, mamba-ssm's and causal-conv1d's.

Each function has the semantics of its plain torch counterpart in `m4v.model` and is tested against it.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from m4v.core.errors import ConfigError
from m4v.kernels.libraries import convolution_kernel, selective_scan_kernel, ssd_kernel
from m4v.kernels.selection import (
    CONVOLUTION,
    MAMBA,
    SCAN_VARIABLE,
    interpreted,
    scan_choice,
    scan_library,
    scans_with_triton,
    version_of,
)
from m4v.kernels.ssd_configs import SIZES, shown_right

_log = logging.getLogger(__name__)

SSD_CHUNK = 128  # as fast as 64 and faster than 256 with one B and C per head (H200, bfloat16)
INDEX_LIMIT = 2**31  # the kernels count elements in int32 and overflow in silence (state-spaces/mamba 1015)
CONV_WIDTHS = (2, 3, 4)
OWN_CONV_WIDTHS = range(2, 9)  # that of `convolution`, which needs Triton
CONV_ALIGNMENT = 8  # channels
SCAN_CHUNK = 2048  # tokens per stored state there


def uses_library(x: Tensor) -> bool:
    """Whether scans of x run on mamba-ssm: on CUDA, 16-bit, or float32 too when asked for by name.

    Its matrix products round float32 to tf32, so `auto` leaves float32 to plain torch.
    """
    if not x.is_cuda or x.dtype == torch.float64 or scan_library() is None:
        return False
    return x.dtype != torch.float32 or scan_choice() == "mamba_ssm"


def uses_own_scan(x: Tensor, size: int, state: int) -> bool:
    """Whether Mamba-2 scans of x, with heads of `size` and states of `state`, run on our own kernels: on CUDA,
    16-bit, or float32 too (three tf32 products for each) when asked for by name. On CUDA only sizes whose gradients
    were right there; another is logged once. On the CPU only under Triton's interpreter, for tests."""
    runs = x.is_cuda or (x.is_cpu and interpreted())
    suits = runs and x.dtype != torch.float64 and size in SIZES and state in SIZES
    if not (suits and scans_with_triton() and (x.dtype != torch.float32 or scan_choice() == "triton")):
        return False
    if not x.is_cuda or shown_right(size, state, x.dtype == torch.float32):
        return True
    if not torch.compiler.is_compiling():
        _say_not_shown(size, state, x.dtype)
    return False


@lru_cache
def _say_not_shown(size: int, state: int, kind: torch.dtype) -> None:
    _log.warning(
        "our Mamba-2 scan was not shown right on a GPU for heads of %d, states of %d and %s: another scan runs",
        size, state, kind,
    )  # fmt: skip


def scans_fast(x: Tensor, ssm: str, size: int, state: int) -> bool:
    """Whether the scan `ssm` of x runs on any kernel, which takes x, b and c in their own type."""
    return (ssm == "ssd" and uses_own_scan(x, size, state)) or uses_library(x)


def convolves_fast(x: Tensor, width: int) -> bool:
    """Whether the causal convolution of x (b, L, D) runs on our own kernel or on causal-conv1d."""
    suits = width in CONV_WIDTHS and x.shape[-1] % CONV_ALIGNMENT == 0
    return uses_own_convolution(x, width) or (suits and uses_library(x) and version_of(CONVOLUTION) is not None)


def uses_own_convolution(x: Tensor, width: int) -> bool:
    """Whether the causal convolution of x runs on our own kernel: where our scans are chosen, 16-bit, or float32 too
    when asked for by name. On the CPU only under Triton's interpreter, for tests."""
    runs = x.is_cuda or (x.is_cpu and interpreted())
    if not runs or x.dtype == torch.float64 or width not in OWN_CONV_WIDTHS or not scans_with_triton():
        return False
    return x.dtype != torch.float32 or scan_choice() == "triton"


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the depthwise causal convolution of x (b, L, D) with taps (D, width): (b, L, D).

    Columns are kept apart by the zeros between them, not by the kernel. Raises ConfigError past `INDEX_LIMIT`, which
    our own kernel does not have.
    """
    if uses_own_convolution(x, weight.shape[1]):
        from m4v.kernels.convolution import convolve_silu  # Triton is there on CUDA only

        return convolve_silu(x, weight, bias)
    _check_size("convolution", x.numel(), CONVOLUTION)
    out: Tensor = convolution_kernel()(x.transpose(1, 2), weight, bias, activation="silu")
    return out.transpose(1, 2)


def ssd_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None) -> Tensor:
    """Mamba-2 scan with `skip * x` added; x (b, L, H, P) and b, c (b, L, H, N) of one type, the rest float32:
    dt (b, L, H), a and skip (H,). `column` (b, L) int32 names each token's sequence; None: all one.

    Returns (b, L, H, P) in the type of x. Raises ConfigError past `INDEX_LIMIT`, which our own kernels do not have.
    """
    batch, length, heads, size = x.shape
    if uses_own_scan(x, size, b.shape[-1]):
        from m4v.kernels.ssd_operators import ssd  # Triton is there on CUDA only

        return ssd(x, dt, a, b, c, skip, column)
    chunks = -(-length // SSD_CHUNK)
    products = batch * chunks * heads * SSD_CHUNK**2  # C B^T of every chunk, one group per head
    states = batch * chunks * heads * size * b.shape[-1]
    _check_size("SSD scan", max(x.numel(), b.numel(), products, states), MAMBA)
    y: Tensor = ssd_kernel()(x, dt, a, b, c, SSD_CHUNK, D=skip, seq_idx=column)
    return y


def selective_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    """Mamba-1 scan with `skip * x` added, of one sequence per row: x, dt (b, L, D), a (D, N), b and c
    (b, L, G, N), skip (D,) -> (b, L, D) in the type of x; computed in float32.

    Raises ConfigError past `INDEX_LIMIT`, and in torch's deterministic mode when a gradient is needed, since
    the kernel's backward adds up with atomics.
    """
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        raise ConfigError(
            f"the Mamba-1 gradient of {MAMBA} is not deterministic", where="deterministic mode",
            next_step=f"use ssm: ssd, engine.deterministic: false, or {SCAN_VARIABLE}=torch",
        )  # fmt: skip
    batch, length, channels = x.shape
    states = batch * channels * -(-length // SCAN_CHUNK) * 2 * a.shape[1]
    _check_size("selective scan", max(x.numel(), b.numel(), states), MAMBA)
    x32, dt, b, c = (u.float().movedim(1, -1) for u in (x, dt, b, c))  # the kernel wants time last
    y: Tensor = selective_scan_kernel()(x32, dt, a.float(), b, c, skip.float())
    return y.movedim(-1, 1).to(x.dtype)


def _check_size(operation: str, elements: int, library: str) -> None:
    if elements >= INDEX_LIMIT:
        raise ConfigError(
            f"the {operation} is too large for {library}, whose indices end at 2^31 elements", value=elements,
            next_step="give each call fewer samples or columns (smaller micro-batch)",
        )  # fmt: skip
