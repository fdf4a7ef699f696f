"""Sizes and launch shapes of the SSD kernels (torch-free): fixed, since the order of sums depends on them."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (16, 32, 64, 128)  # of a head, and of its state
# (head, state) whose outputs and gradients were right on a GPU, for products of 16 bits and of float32. The others
# are not used: 32 with 128 had wrong gradients, float32 of 16 an illegal address (Hopper, Triton 3.6).
SHOWN_OF_16_BITS = ((16, 16), (16, 64), (64, 64), (128, 32), (128, 128))
SHOWN_OF_FLOAT32 = ((64, 64),)


@dataclass(frozen=True)
class SsdConfig:
    """Tokens per chunk, warps of each kernel, and the tiles of the state passing."""

    chunk: int
    states_warps: int = 4
    outputs_warps: int = 4
    gradients_warps: int = 8
    gradients_block: int = 64  # targets at a time
    pass_block: int = 256  # elements of a state
    pass_unroll: int = 8  # chunks loaded at once
    pass_warps: int = 2


# What a benchmark may compare. Whoever changes one that `default_config` returns changes bits: see `OWN_SCAN`.
CONFIGS = (
    SsdConfig(chunk=64),
    SsdConfig(chunk=128, outputs_warps=8),
    SsdConfig(chunk=128, outputs_warps=8, gradients_block=32),
)


@dataclass(frozen=True)
class SegmentConfig:
    """Of the scan without gradients: tokens per chunk, chunks per segment; warps and stages of loads of each kernel."""

    chunk: int = 64
    chunks: int = 8
    states_warps: int = 4
    outputs_warps: int = 4
    states_stages: int = 2
    outputs_stages: int = 2
    pass_block: int = 256  # elements of a state
    pass_unroll: int = 8  # segments loaded at once
    pass_warps: int = 2


# What a benchmark may compare, as `CONFIGS`.
SEGMENTS = (
    SegmentConfig(states_stages=3, outputs_stages=3), SegmentConfig(), SegmentConfig(chunks=4),
    SegmentConfig(chunks=16), SegmentConfig(outputs_warps=8), SegmentConfig(outputs_stages=1),
)  # fmt: skip


def default_segments(size: int, state: int, exact: bool) -> int | None:
    """Number in `SEGMENTS` for the scan without gradients, for sizes that were shown right on a GPU; None: the kernels
    of `CONFIGS`."""
    return None if exact or (size, state) != (64, 64) else 0


def default_config(size: int, state: int, exact: bool) -> int:
    """Number in `CONFIGS` for heads of `size` and states of `state`; `exact`: products of float32."""
    return 0 if exact or max(size, state) > 64 else 2


def shown_right(size: int, state: int, exact: bool) -> bool:
    """Whether heads of `size` with states of `state` were right on a GPU; `exact`: products of float32."""
    return (size, state) in (SHOWN_OF_FLOAT32 if exact else SHOWN_OF_16_BITS)
