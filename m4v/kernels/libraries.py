"""Loading mamba-ssm and causal-conv1d: only when first used, and without what their packages drag in."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

from m4v.core.errors import ConfigError
from m4v.kernels.selection import CONVOLUTION, MAMBA, SCAN_VARIABLE, version_of

_log = logging.getLogger(__name__)

_KEEP_TUNING = "TRITON_CACHE_AUTOTUNING"  # Triton: the fastest block sizes are kept on disk
_FIXED = "MAMBA_DETERMINISTIC"  # mamba-ssm: fixed block sizes and no atomics, as torch's deterministic mode


@lru_cache
def ssd_kernel() -> Callable[..., Any]:
    """`mamba_chunk_scan_combined`. Raises ConfigError when the installed library does not load.

    Even its forward sums in an order that depends on the block sizes. In torch's deterministic mode the
    library takes fixed ones; else the fastest are kept on disk, so that a restart takes the same.
    The mode counts at the first call: the library reads it when it is imported.
    """
    fixed = torch.are_deterministic_algorithms_enabled() or os.environ.get(_FIXED, "").startswith("1")
    kept = os.environ.setdefault(_KEEP_TUNING, "1")
    if fixed:  # it takes the kept ones in its deterministic mode, too, and processes that start together find others
        del os.environ[_KEEP_TUNING]
    try:
        return _opaque(_load("mamba_ssm.ops.triton.ssd_combined", MAMBA).mamba_chunk_scan_combined)
    finally:
        os.environ[_KEEP_TUNING] = kept


@lru_cache
def selective_scan_kernel() -> Callable[..., Any]:
    """`selective_scan_fn` (Mamba-1). Raises ConfigError when the installed library does not load."""
    return _opaque(_load("mamba_ssm.ops.selective_scan_interface", MAMBA).selective_scan_fn)


@lru_cache
def convolution_kernel() -> Callable[..., Any]:
    """`causal_conv1d_fn`. Raises ConfigError when the installed library does not load."""
    return _opaque(_load("causal_conv1d.causal_conv1d_interface", CONVOLUTION).causal_conv1d_fn)


def _load(name: str, distribution: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _import_below(name)
    except Exception as error:  # a broken build raises anything, from ImportError to Triton's own
        raise ConfigError(
            f"{distribution} is installed but does not load: {error}", where=name,
            next_step=f"build it for torch {torch.__version__}, or set {SCAN_VARIABLE}=torch",
        ) from error  # fmt: skip
    _log.info("%s: %s %s", name.rpartition(".")[2], distribution, version_of(distribution))
    return module


def _import_below(name: str) -> ModuleType:
    """Import a module of a package without running the package's `__init__`.

    mamba_ssm's imports its language models, and with them transformers and more kernels than are needed.
    A bare package stands in meanwhile; a later `import mamba_ssm` finds the submodules and runs as usual.
    """
    package = name.partition(".")[0]
    if package in sys.modules:
        return importlib.import_module(name)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {package}")
    stand_in = ModuleType(package)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = stand_in
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]


def _opaque(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo breaks inside these kernels when it sees a second length, so it shall not look."""
    opaque: Callable[..., Any] = torch.compiler.disable(kernel)
    return opaque
