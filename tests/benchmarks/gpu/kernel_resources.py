"""Shared memory, registers and spills, on Hopper, of the kernels that a real model launches; no GPU needed.

    python tests/benchmarks/gpu/kernel_resources.py

Blocks of the published width run forwards and backwards on a few tokens of the CPU. In place of each launch, the kernel
is compiled for Hopper with what it was given (`ssd_resources.py` has the scan's other sizes). Exit status 1 when a
kernel needs more shared memory than a block of Hopper can have.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[3]))
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also where there is one

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from m4v.config import ModelConfig
from m4v.kernels import frames_corner, use_kernels
from m4v.kernels.frames import attend_frames
from m4v.model import M4VTransformer
from m4v.model.attention import attention_frames
from m4v.model.layout import BatchLayout, Clip, Column
from tests.benchmarks.gpu.ssd_resources import MOST_SHARED, _assembled

HOPPER = GPUTarget("cuda", 90, 32)
BACKEND = make_backend(HOPPER)
BLOCKS = {"double_blocks": 1, "single_blocks": 1}
seen: dict[tuple[object, ...], int] = {}


def compiled(kernel: Any, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
    """Print a kernel's needs the first time that it is launched in this form."""
    bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
    bound, special, given = bind(*arguments, **options, debug=False)
    given, signature, constants, attributes = kernel._pack_args(
        BACKEND, options | {"debug": False}, bound, special, given
    )
    name = f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"
    key = (name, tuple(map(str, special)), str(given))
    if key in seen:
        return
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=HOPPER, options=given.__dict__)
    registers, spilled = _assembled(made.asm["ptx"])
    seen[key] = made.metadata.shared
    kinds = "/".join(sorted({str(s[0]) for s in special if str(s[0]).startswith("*")}))
    needs = f"shared {seen[key]} registers {registers} spilled {spilled}"
    print(f"{name} warps {made.metadata.num_warps} {needs} {kinds}", flush=True)


def step(dtype: torch.dtype, autocast: bool, columns: int, **changes: object) -> None:
    """A forward without gradients, then one forward and backward, of a model of the published width."""
    config = ModelConfig.model_validate(BLOCKS | changes)
    model = M4VTransformer(config).cast(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    channels = config.latent_channels
    sizes = [4 << level for level in range(columns)]
    clips = [[torch.randn(1, channels, 1, n, n, dtype=dtype) for n in sizes[: c + 1]] for c in range(columns)]
    rows = columns
    text = torch.randn(rows, config.text_slots, config.text_dim, dtype=dtype)
    mask, pooled = torch.ones(rows, config.text_slots), torch.randn(rows, config.pooled_dim, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        given = (clips, torch.rand(rows), text, mask, pooled, list(range(columns)))
        with torch.no_grad(), patch("m4v.kernels.scan.uses_own_convolution", lambda x, width: True):
            model(*given)
        outs = model(*given)
    sum(out.float().sum() for out in outs).backward()


def frames(size: int) -> None:
    layout = BatchLayout((Column(0, (Clip(5, 8, 8), Clip(1, 8, 8))),), 128)
    tokens = layout.text_tokens + layout.image_tokens
    qkv = [torch.randn(2, tokens, 3, size).bfloat16().requires_grad_() for _ in range(3)]
    shape = attention_frames(layout, torch.ones(2, 1, 128, dtype=torch.bool), True)
    with patch("m4v.kernels.frames._corner", lambda _: frames_corner):
        attend_frames(*qkv, shape, 64).sum().backward()


def main() -> int:
    with (
        patch.object(JITFunction, "run", compiled),
        patch("m4v.model.fused.uses_glue", lambda x, head: True),
        patch("m4v.kernels.scan.uses_own_scan", lambda x, size, state: True),
        use_kernels(glue="triton", scan="triton"),
    ):
        for size in (64, 128):
            frames(size)
        for columns in (1, 2):
            step(torch.bfloat16, False, columns)
            step(torch.float32, True, columns)
        step(torch.bfloat16, False, 2, ssm="mamba1")
        step(torch.bfloat16, False, 1, registers=False, text_recomposition=False, rope_on_ssm=False, mixer="parallel")
    return int(max(seen.values()) > MOST_SHARED)


if __name__ == "__main__":
    sys.exit(main())
