"""Which part of a network a kernel belongs to: by the module whose forward launched it, and by its own name."""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch.profiler import record_function

from m4v.kernels.selection import TRITON, version_of

LABEL = "part: "
# Kind of kernel, by its name, the first that matches; of the mixer's and of what has no module of its own.
KINDS = (
    ("GEMMs", r"::(add)?mm$|gemm|nvjet|cutlass|xmma|cublas|splitK|mm_kernel"),
    ("convolution", r"conv(?!ert)"),
    ("attention", r"flash|fmha|sdpa|cudnn|attention|flex"),
    ("SSD", r"chunk|ssd|state_pass|bmm|scan|cumsum"),
    ("composition", r"index|gather|scatter|compos|decompos"),
    ("norms and rotation", r"norm|rotat|rope|head_rows"),
    ("copies", r"copy|cat|memcpy|memset|fill|convert"),
    ("reductions", r"reduce"),
)  # fmt: skip
# Parts of our own kernels, by the module of `m4v.kernels` that they are in.
OWN = {
    "convolution_kernels": "convolution", "composition": "composition", "mixing": "composition", "modulation": "AdaLN",
    "head_norm": "norms and rotation", "pieces": "temporal branch",
    "piece_attention": "temporal branch", "column_sums": "reductions",
    "ssd_forward": "SSD", "ssd_backward": "SSD", "ssd_segments": "SSD", "frames_triton": "attention",
}  # fmt: skip


@cache
def own_kernels() -> dict[str, str]:
    """Kernel -> part of those that are our own; empty without Triton."""
    if version_of(TRITON) is None:
        return {}
    from triton.runtime.jit import KernelInterface

    modules = [(part, f"m4v.kernels.{name}", vars(import_module(f"m4v.kernels.{name}"))) for name, part in OWN.items()]
    return {
        name: part for part, home, held in modules for name, kernel in held.items()
        if isinstance(kernel, KernelInterface) and kernel.__module__ == home
    }  # fmt: skip


def kind_of(kernel: str) -> str:
    if kernel in own_kernels():
        return own_kernels()[kernel]
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE)), "elementwise")


def labelled(network: torch.nn.Module, stack: ExitStack) -> None:
    """Ranges around the forward of every module inside a network."""
    for name, module in network.named_modules():
        if name:
            stack.enter_context(ModuleRange(module, LABEL + name))


class ModuleRange:
    """Hooks that open and close a profiler range around a module's forward."""

    def __init__(self, module: torch.nn.Module, label: str) -> None:
        self.open: list[Any] = []
        self.handles = [
            module.register_forward_pre_hook(lambda *_: self.open.append(record_function(label).__enter__())),
            module.register_forward_hook(lambda *_: self.open.pop().__exit__(None, None, None)),
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def module_of(event: Any) -> str:
    """The innermost labelled module around an event."""
    while event is not None:
        if event.name.startswith(LABEL):
            return str(event.name.removeprefix(LABEL))
        event = event.cpu_parent
    return ""
