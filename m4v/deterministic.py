"""Torch's deterministic mode, for a process that has promised equal bytes on a GPU."""

from __future__ import annotations

import os

import torch

# Read when a library is first used: cuBLAS keeps a fixed workspace, causal-conv1d adds up without atomics.
# mamba-ssm follows torch's own switch.
_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "CAUSAL_CONV1D_DETERMINISTIC": "1"}


def use_deterministic() -> None:
    """From now on CUDA operations give equal results in every run; one that cannot raises RuntimeError by name.

    To be called before the first CUDA operation of the process. The CPU needs none of it: with a fixed number of
    threads, its operations here repeat.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    torch.backends.cudnn.benchmark = False  # measures which algorithm is the fastest, and may find another
    torch.use_deterministic_algorithms(True)
    # It writes into memory that is overwritten anyway: time, and no other number.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
