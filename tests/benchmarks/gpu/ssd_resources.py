"""Shared memory, registers and spills of the SSD kernels for Hopper, compiled without a GPU.

    python tests/benchmarks/gpu/ssd_resources.py

Exit status 1 when a kernel does not compile, or needs more shared memory than a block of Hopper can have.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[3]))
from m4v.kernels import ssd_backward, ssd_forward, ssd_segments
from m4v.kernels.ssd_configs import CONFIGS, SEGMENTS, SIZES, SegmentConfig, SsdConfig, default_config

HOPPER, MOST_SHARED = GPUTarget("cuda", 90, 32), 227 * 1024
OPERANDS = ("x", "b", "c", "dy", "keys", "values", "y", "dx", "db", "dc", "gradients", "passed")
PLAIN = ("dt", "bias", "a", "skip", "decay", "d_dt", "partial", "local")


class Found(NamedTuple):
    """One compiled kernel; `extras`: with column and bias; spills in bytes per thread."""

    kernel: str
    config: int
    size: int
    state: int
    kind: str
    extras: bool
    warps: int
    shared: int
    registers: int
    spilled: int


def compiled(
    kernel: Any, constants: dict[str, Any], kind: str, warps: int, states: str, stages: int = 3
) -> tuple[int, int, int]:
    """Shared bytes, registers and spilled bytes."""
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:  # an argument that is None is one, too
            signature[name] = "constexpr"
        elif name == "column":
            signature[name] = "*i32"
        elif name in OPERANDS or name in PLAIN or name == "states":
            signature[name] = f"*{states if name == 'states' else 'fp32' if name in PLAIN else kind}"
        else:
            signature[name] = "i32"
        if signature[name].startswith("*") or name.endswith(("_batch", "_row", "_head")):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    found = triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})
    return found.metadata.shared, *_assembled(found.asm["ptx"])


def _assembled(ptx: str) -> tuple[int, int]:
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (source := Path(folder, "kernel.ptx")).write_text(ptx)
        command = [str(assembler), "-v", "--gpu-name=sm_90a", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    return int(registers[1]) if registers else 0, int(spilled[1]) if spilled else 0


def kernels_of(number: int, config: SsdConfig, size: int, state: int, kind: str, extras: bool) -> list[Found]:
    common: dict[str, Any] = {
        "chunk": config.chunk, "state": state, "size": size, "has_bias": extras, "softplus": extras,
        "has_column": extras, "precision": "tf32x3" if kind == "fp32" else "tf32",
    } | ({} if extras else {"column": None, "bias": None})  # fmt: skip
    block = min(config.pass_block, size * state)
    passing = {"elements": size * state, "block": block, "unroll": config.pass_unroll}
    parts = (
        ("states", ssd_forward._chunk_states, common | {"reverse": False}, config.states_warps, "fp32"),
        ("reverse states", ssd_forward._chunk_states, common | {"reverse": True}, config.states_warps, "fp32"),
        ("outputs", ssd_forward._chunk_outputs, common, config.outputs_warps, kind),
        (
            "gradients",
            ssd_backward._chunk_gradients,
            common | {"block": min(config.gradients_block, config.chunk)},
            config.gradients_warps,
            kind,
        ),
        ("passing", ssd_forward._pass_states, passing | {"reverse": False}, config.pass_warps, kind),
        ("reverse passing", ssd_forward._pass_states, passing | {"reverse": True}, config.pass_warps, kind),
    )
    return [
        Found(name, number, size, state, kind, extras, warps, *compiled(kernel, constants, kind, warps, states))
        for name, kernel, constants, warps, states in parts
    ]


def segments_of(number: int, config: SegmentConfig, extras: bool) -> list[Found]:
    """Of the scan without gradients, heads and states of 64, 16 bits."""
    common: dict[str, Any] = {
        "chunk": config.chunk, "chunks": config.chunks, "state": 64, "size": 64, "has_bias": extras,
        "softplus": extras, "has_column": extras, "precision": "tf32",
    } | ({} if extras else {"column": None, "bias": None})  # fmt: skip
    parts = (
        ("segment states", ssd_segments._segment_states, config.states_warps, config.states_stages),
        ("segment outputs", ssd_segments._segment_outputs, config.outputs_warps, config.outputs_stages),
    )
    return [
        Found(name, number, 64, 64, "bf16", extras, warps, *compiled(kernel, common, "bf16", warps, "fp32", stages))
        for name, kernel, warps, stages in parts
    ]


def main() -> int:
    cases = [(number, 64, 64, "bf16", extras) for number in range(len(CONFIGS)) for extras in (True, False)]
    least, most = SIZES[0], SIZES[-1]
    rectangles = ((16, 64), (32, 128), (128, 32), (least, most), (most, least))
    others = [(*sizes, "bf16") for sizes in ((least, least), (most, most), *rectangles)]
    for size, state, kind in [*others, (64, 64, "fp32"), (most, most, "fp32")]:
        cases.append((default_config(size, state, kind == "fp32"), size, state, kind, True))
    largest = 0
    for number, size, state, kind, extras in cases:
        for found in kernels_of(number, CONFIGS[number], size, state, kind, extras):
            print(" ".join(f"{name} {value}" for name, value in found._asdict().items()), flush=True)
            largest = max(largest, found.shared)
    for number, extras in [(number, extras) for number in range(len(SEGMENTS)) for extras in (True, False)]:
        for found in segments_of(number, SEGMENTS[number], extras):
            print(" ".join(f"{name} {value}" for name, value in found._asdict().items()), flush=True)
            largest = max(largest, found.shared)
    print(f"most shared memory {largest} of {MOST_SHARED} bytes")
    return int(largest > MOST_SHARED)


if __name__ == "__main__":
    sys.exit(main())
