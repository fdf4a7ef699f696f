"""Which implementation each operation uses on a device (torch-free, so that planning can ask).

`auto` takes a library where it is installed and the tensors suit it, and never falls back in silence: a library
that is installed but does not load is an error, since stage keys name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Literal, get_args

from m4v.core.errors import ConfigError

ScanChoice = Literal["auto", "torch", "mamba_ssm", "triton"]
AttentionChoice = Literal["auto", "dense", "flex", "frames"]
GlueChoice = Literal["auto", "torch", "triton"]

SCAN_VARIABLE = "M4V_KERNELS"
ATTENTION_VARIABLE = "M4V_ATTENTION"
GLUE_VARIABLE = "M4V_GLUE"
MAMBA, CONVOLUTION, TRITON = "mamba-ssm", "causal-conv1d", "triton"
# What `auto` means where Triton is there: at 15,488 tokens `frames` is twice as fast as FlexAttention (H200).
AUTO_ATTENTION: Literal["flex", "frames"] = "frames"
FRAMES_VERSION = 1  # to be raised with any change of `frames` that changes numbers
OWN_CONVOLUTION = "m4v-convolution 3"  # `convolution`; a new number whenever its bits change
OWN_SCAN = "m4v-triton 3"  # `ssd_operators`; a new number whenever its bits change, since stage keys hold it
# What `auto` means where Triton is there: they have passed their tests on a GPU and are faster than mamba-ssm's (H200).
OWN_SCAN_BY_DEFAULT = True
OWN_GLUE = "m4v-glue 6"  # the kernels of `m4v.model.fused`; a new number whenever their or its products' bits change
# The same where M4V_KERNELS is not `torch`: at 15,488 tokens composition is 17 times as fast as index, cat and slice
# (H200, forward).
OWN_GLUE_BY_DEFAULT = True

_versions: dict[str, str | None] = {}  # of distributions, as `version_of` found them
# Not a context variable: recomputed blocks run in a thread of the backward pass and must choose the same.
_chosen: dict[str, str | None] = {SCAN_VARIABLE: None, ATTENTION_VARIABLE: None, GLUE_VARIABLE: None}


def scan_choice() -> str:
    """`use_kernels`, else `M4V_KERNELS`, else auto. Raises ConfigError for another word."""
    return _chosen[SCAN_VARIABLE] or _from_environment(SCAN_VARIABLE, get_args(ScanChoice))


def attention_choice() -> str:
    """`use_kernels`, else `M4V_ATTENTION`, else auto. Raises ConfigError for another word."""
    return _chosen[ATTENTION_VARIABLE] or _from_environment(ATTENTION_VARIABLE, get_args(AttentionChoice))


def glue_choice() -> str:
    """`use_kernels`, else `M4V_GLUE`, else auto. Raises ConfigError for another word."""
    return _chosen[GLUE_VARIABLE] or _from_environment(GLUE_VARIABLE, get_args(GlueChoice))


def _from_environment(variable: str, known: tuple[str, ...]) -> str:
    value = os.environ.get(variable) or "auto"
    if value not in known:
        raise ConfigError(
            "no such kernels", value=value, where=f"the environment variable {variable}",
            next_step=f"set it to one of {', '.join(known)}",
        )  # fmt: skip
    return value


@contextmanager
def use_kernels(
    scan: ScanChoice | None = None, attention: AttentionChoice | None = None, glue: GlueChoice | None = None
) -> Iterator[None]:
    """Choose for the process inside a block; None leaves a choice as it is. For tests and comparisons: stage keys
    record what the environment variables say. A backward pass belongs into the block of its forward."""
    before = dict(_chosen)
    asked = {SCAN_VARIABLE: scan, ATTENTION_VARIABLE: attention, GLUE_VARIABLE: glue}
    _chosen.update({variable: choice for variable, choice in asked.items() if choice})
    try:
        yield
    finally:
        _chosen.update(before)


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None when it is not there."""
    if distribution not in _versions:
        try:
            _versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            _versions[distribution] = None
    return _versions[distribution]


# Blocks ask for these, and torch.compile cannot trace the search (nor a cache of functools, which it leaves out).
for _name in (MAMBA, CONVOLUTION, TRITON):
    version_of(_name)


def kernel_set(device: str) -> dict[str, str]:
    """Implementation and version behind `scan`, `convolution`, `attention`, the `glue` of the blocks around them and
    the VAE's `norm` on `cpu` or `cuda`.

    These are the kernels of 16-bit tensors; float32 and float64 stay with plain torch unless a library is
    asked for by name. Raises ConfigError when the choice names a library that is not installed.
    """
    found = {"scan": "torch", "convolution": "torch", "attention": "dense", "glue": "torch", "norm": "torch"}
    if device != "cuda":
        return found
    library = scan_library()
    scans = [OWN_SCAN] if scans_with_triton() else []  # mamba-ssm stays behind them, for Mamba-1 and odd head sizes
    scans += [f"{MAMBA} {library}"] if library else []
    found["scan"] = ", ".join(scans) or "torch"
    if scans_with_triton():
        found["convolution"] = OWN_CONVOLUTION
    elif library and (convolution := version_of(CONVOLUTION)):
        found["convolution"] = f"{CONVOLUTION} {convolution}"
    if uses_flex():
        found["attention"] = f"flex {version_of('torch')}"
    elif uses_frames_kernel():
        found["attention"] = f"frames {FRAMES_VERSION} torch {version_of('torch')}"
    if fuses_glue():
        found["glue"] = OWN_GLUE
    if fuses_norm():
        found["norm"] = f"{TRITON} {version_of(TRITON)}"
    return found


def kernel_summary(device: str) -> str:
    """`kernel_set` in one line, for the numerics record; `torch` when all is plain torch."""
    found = kernel_set(device)
    special = [name for name in found.values() if name not in ("torch", "dense")]
    return ", ".join(special) or "torch"


def interpreted() -> bool:
    """Whether Triton's interpreter runs kernels, so that tests can try them on the CPU's tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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


def scans_with_triton() -> bool:
    """Whether Mamba-2 scans and the convolution before them on CUDA shall run on our Triton kernels. Raises ConfigError
    when they are asked for by name and Triton is not installed."""
    choice = scan_choice()
    there = version_of(TRITON) is not None
    if choice == "triton" and not there:
        raise ConfigError(
            f"our scans need {TRITON}, which is not installed", where=SCAN_VARIABLE,
            next_step=f"pip install {TRITON}, or {SCAN_VARIABLE}=auto",
        )  # fmt: skip
    return choice == "triton" or (choice == "auto" and OWN_SCAN_BY_DEFAULT and there)


def uses_flex() -> bool:
    """Whether attention on CUDA shall use block masks, which are compiled with Triton."""
    return _uses_attention("flex")


def uses_frames_kernel() -> bool:
    """Whether attention on CUDA shall run as rectangles of frames and Triton's corner between them."""
    return _uses_attention("frames")


def _uses_attention(name: str) -> bool:
    choice = attention_choice()
    there = version_of(TRITON) is not None
    if choice == name and not there:
        raise ConfigError(
            f"block-sparse attention needs {TRITON}, which is not installed", where=ATTENTION_VARIABLE,
            next_step=f"pip install {TRITON}, or {ATTENTION_VARIABLE}=dense",
        )  # fmt: skip
    return there and name == (AUTO_ATTENTION if choice == "auto" else choice)


def fuses_norm() -> bool:
    """Whether the VAE's norms on CUDA shall run as our Triton kernels; `M4V_KERNELS=torch` says no."""
    return scan_choice() != "torch" and version_of(TRITON) is not None


def fuses_glue() -> bool:
    """Whether what the blocks do between products, scans and attention shall run on our Triton kernels on CUDA; with
    `auto` unless M4V_KERNELS says `torch`. Raises ConfigError when they are asked for by name without Triton."""
    choice, there = glue_choice(), version_of(TRITON) is not None
    if choice == "triton" and not there:
        raise ConfigError(
            f"our kernels need {TRITON}, which is not installed", where=GLUE_VARIABLE,
            next_step=f"pip install {TRITON}, or {GLUE_VARIABLE}=auto",
        )  # fmt: skip
    if choice != "auto":
        return choice == "triton"
    return there and (scan_choice() == "triton" or (OWN_GLUE_BY_DEFAULT and scan_choice() != "torch"))
