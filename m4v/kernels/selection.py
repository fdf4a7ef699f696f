"""Which implementation each operation uses on a device (torch-free, so that planning can ask).

`auto` takes a library where it is installed and the tensors suit it, and never falls back in silence: a library
that is installed but does not load is an error, since stage keys name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from typing import Literal, get_args

from m4v.core.errors import ConfigError

ScanChoice = Literal["auto", "torch", "mamba_ssm"]
AttentionChoice = Literal["auto", "dense", "flex"]

SCAN_VARIABLE = "M4V_KERNELS"
ATTENTION_VARIABLE = "M4V_ATTENTION"
MAMBA, CONVOLUTION, TRITON = "mamba-ssm", "causal-conv1d", "triton"

# Not a context variable: recomputed blocks run in a thread of the backward pass and must choose the same.
_chosen: dict[str, str | None] = {SCAN_VARIABLE: None, ATTENTION_VARIABLE: None}


def scan_choice() -> str:
    """`use_kernels`, else `M4V_KERNELS`, else auto. Raises ConfigError for another word."""
    return _chosen[SCAN_VARIABLE] or _from_environment(SCAN_VARIABLE, get_args(ScanChoice))


def attention_choice() -> str:
    """`use_kernels`, else `M4V_ATTENTION`, else auto. Raises ConfigError for another word."""
    return _chosen[ATTENTION_VARIABLE] or _from_environment(ATTENTION_VARIABLE, get_args(AttentionChoice))


def _from_environment(variable: str, known: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or "auto"
    if value not in known:
        raise ConfigError(
            "no such kernels", value=value, where=f"the environment variable {variable}",
            next_step=f"set it to one of {', '.join(known)}",
        )  # fmt: skip
    return value


@contextmanager
def use_kernels(scan: ScanChoice | None = None, attention: AttentionChoice | None = None) -> Iterator[None]:
    """Choose for the process inside a block; None leaves a choice as it is. For tests and comparisons: stage keys
    record what the environment variables say. A backward pass belongs into the block of its forward."""
    before = dict(_chosen)
    _chosen.update(
        {SCAN_VARIABLE: scan or before[SCAN_VARIABLE], ATTENTION_VARIABLE: attention or before[ATTENTION_VARIABLE]}
    )
    try:
        yield
    finally:
        _chosen.update(before)


@lru_cache
def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None when it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def kernel_set(device: str) -> dict[str, str]:
    """Implementation and version behind `scan`, `convolution`, `attention` and the VAE's `norm` on `cpu` or `cuda`.

    These are the kernels of 16-bit tensors; float32 and float64 stay with plain torch unless a library is
    asked for by name. Raises ConfigError when the choice names a library that is not installed.
    """
    found = {"scan": "torch", "convolution": "torch", "attention": "dense", "norm": "torch"}
    if device != "cuda":
        return found
    if library := scan_library():
        found["scan"] = f"{MAMBA} {library}"
        if convolution := version_of(CONVOLUTION):
            found["convolution"] = f"{CONVOLUTION} {convolution}"
    if uses_flex():
        found["attention"] = f"flex {version_of('torch')}"
    if fuses_norm():
        found["norm"] = f"{TRITON} {version_of(TRITON)}"
    return found


def kernel_summary(device: str) -> str:
    """`kernel_set` in one line, for the numerics record; `torch` when all is plain torch."""
    found = kernel_set(device)
    special = [name for name in found.values() if name not in ("torch", "dense")]
    return ", ".join(special) or "torch"


def scan_library() -> str | None:
    """Version of mamba-ssm if scans on CUDA shall use it."""
    choice = scan_choice()
    version = None if choice == "torch" else version_of(MAMBA)
    if choice == "mamba_ssm" and version is None:
        raise ConfigError(
            f"{MAMBA} is not installed", where=SCAN_VARIABLE,
            next_step=f"pip install 'm4v-pipeline[gpu]', or {SCAN_VARIABLE}=torch",
        )  # fmt: skip
    return version


def uses_flex() -> bool:
    """Whether attention on CUDA shall use block masks, which are compiled with Triton."""
    choice = attention_choice()
    there = choice != "dense" and version_of(TRITON) is not None
    if choice == "flex" and not there:
        raise ConfigError(
            f"block-sparse attention needs {TRITON}, which is not installed", where=ATTENTION_VARIABLE,
            next_step=f"pip install {TRITON}, or {ATTENTION_VARIABLE}=dense",
        )  # fmt: skip
    return there


def fuses_norm() -> bool:
    """Whether the VAE's norms on CUDA shall run as our Triton kernels; `M4V_KERNELS=torch` says no."""
    return scan_choice() != "torch" and version_of(TRITON) is not None
