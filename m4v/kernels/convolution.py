# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Causal depthwise convolution and SiLU as one Triton kernel, for sequences that lie behind each other.

A program walks down segments of rows and keeps the rows that the taps still read in registers, so that every value is
read once; rows of the neighbours are read again at the ends of a segment. Backward computes the convolution again
instead of keeping it, and walks on until all readers of a row are known: it reads gradient and input and writes the
input's gradient, nothing else of that size. Sums are float32. Every program leaves its part of the gradients of taps
and bias, which are then added up in one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from m4v.kernels.convolution_kernels import (
    convolution_backward,
    convolution_forward,
    convolution_gathered,
    convolution_sums,
)
from m4v.kernels.operators import operator
from m4v.kernels.scan import OWN_CONV_WIDTHS


class ConvConfig(NamedTuple):
    """Shape of a program: `segments` of `rows` rows each, which it walks down side by side, for `block` channels;
    the loads of `group` rows are in flight together, those of the next group `ahead` of the work on this one or not."""

    block: int
    segments: int
    rows: int
    group: int
    ahead: bool
    warps: int


# By direction, of four taps in 16 bits without a spill on Hopper; bench_convolution.py times them all. The first is
# taken: loads of 8 bytes a thread and whole cache lines, some 57 kB in flight on a processor, whole waves at 15,616
# tokens.
FORWARD = (
    ConvConfig(64, 4, 64, 8, False, 2), ConvConfig(64, 4, 32, 8, False, 2), ConvConfig(64, 4, 64, 4, True, 2),
    ConvConfig(128, 4, 64, 8, False, 4), ConvConfig(128, 8, 64, 4, False, 4), ConvConfig(128, 1, 64, 8, False, 1),
)  # fmt: skip
BACKWARD = (
    ConvConfig(64, 4, 64, 8, False, 2), ConvConfig(64, 4, 32, 8, False, 2), ConvConfig(64, 4, 64, 4, False, 2),
    ConvConfig(64, 4, 64, 4, True, 2), ConvConfig(64, 4, 64, 2, True, 2), ConvConfig(128, 4, 64, 8, False, 4),
    ConvConfig(128, 4, 32, 4, True, 4), ConvConfig(128, 1, 64, 8, False, 1),
)  # fmt: skip
# Of gathered rows, one segment: the number of a row is a scalar of the program, not a block that every thread reads
# again for each of its channels. 64 registers: 32 programs at once on a processor, one wave at 15,616 tokens.
GATHERED = ConvConfig(128, 1, 64, 8, False, 1)
_LEAST_ROWS, _LEAST_WARPS = 16, 14 * 132  # a Hopper GPU has 132 processors
_PARTS, _CHANNELS, _WARPS = 64, 32, 4  # of a tile of the last sum


def convolve_silu(x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None = None) -> Tensor:
    """SiLU of the causal depthwise convolution of x (b, L, D) with taps (D, width) and bias (D,): (b, L, D) in the type
    of x; the last tap is that of the token itself.

    `column` (b, L) names each token's sequence, one run of tokens each: no tap reaches into another one; None: each
    row is one. Raises ValueError for other shapes, or widths that are not in `OWN_CONV_WIDTHS`.
    """
    shapes = x.ndim == 3 and weight.shape == (x.shape[-1], weight.shape[-1]) and bias.shape == x.shape[-1:]
    if not shapes or weight.shape[1] not in OWN_CONV_WIDTHS or (column is not None and column.shape != x.shape[:2]):
        raise ValueError(f"no convolution of x {tuple(x.shape)} with taps {tuple(weight.shape)}, bias {bias.shape}")
    column = None if column is None else column.to(torch.int32).contiguous()
    out: Tensor = _forward(x, weight, bias, column)
    return out


def config_of(config: ConvConfig, x: Tensor) -> ConvConfig:
    """The configuration with its rows, or as many fewer as it takes to fill a GPU with x (b, L, D)."""
    while config.rows > _LEAST_ROWS and _programs(x, config) * config.warps < _LEAST_WARPS:
        config = config._replace(rows=config.rows // 2)
    return config


def _tiles(x: Tensor, config: ConvConfig) -> int:
    return int(triton.cdiv(x.shape[1], config.rows * config.segments))


def _programs(x: Tensor, config: ConvConfig) -> int:
    return _tiles(x, config) * int(triton.cdiv(x.shape[2], config.block)) * x.shape[0]


def _rowwise(u: Tensor) -> Tensor:
    """u with neighbouring channels, else a copy; rows and samples may lie apart, as in a slice of a projection."""
    return u if u.stride(-1) == 1 else u.contiguous()


def forward_with(config: ConvConfig, x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None) -> Tensor:
    """`convolve_silu` as programs of one shape; `column` int32."""
    x, weight, bias = _rowwise(x), weight.contiguous(), bias.contiguous()
    out = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        convolution_forward[_programs(x, config) // x.shape[0], x.shape[0]](
            x, weight, bias, x if column is None else column, out, x.shape[1], x.stride(0), x.shape[2], x.stride(1),
            weight.shape[1], column is not None, *config[:5], num_warps=config.warps,
        )  # fmt: skip
    return out


def convolve_gathered(x: Tensor, source: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The bits of `convolve_silu` of the rows of x (b, E, D) that `source` (b, L) int32 numbers, counted over all
    samples, zeros where it is -1: (b, L, D). No gradient."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    (batch, length), channels = source.shape, x.shape[2]
    out = x.new_empty((batch, length, channels))
    config = config_of(GATHERED, out)
    with torch.cuda.device_of(x):
        convolution_gathered[_programs(out, config) // batch, batch](
            x, source, weight, bias, out, length, channels, weight.shape[1], config.block, config.rows, config.group,
            num_warps=config.warps,
        )  # fmt: skip
    return out


def backward_with(
    config: ConvConfig, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps and of the bias, as programs of one shape; `column` int32."""
    grad, x, weight, bias = _rowwise(grad), _rowwise(x), weight.contiguous(), bias.contiguous()
    (batch, _, channels), width, tiles = x.shape, weight.shape[1], _tiles(x, config)
    to_x, to_weight, to_bias = x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)
    parts = torch.empty((batch * tiles, width + 1, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        convolution_backward[_programs(x, config) // batch, batch](
            grad, x, weight, bias, x if column is None else column, to_x, parts, x.shape[1], grad.stride(0),
            x.stride(0), channels, grad.stride(1), x.stride(1), width, column is not None, *config[:5],
            num_warps=config.warps,
        )  # fmt: skip
        convolution_sums[triton.cdiv(channels, _CHANNELS), width + 1](
            parts, to_weight, to_bias, batch * tiles, channels, width, _PARTS, _CHANNELS, num_warps=_WARPS
        )
    return to_x, to_weight, to_bias


@operator("m4v::causal_conv_silu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None) -> Tensor:
    return forward_with(config_of(FORWARD[0], x), x, weight, bias, column)


@_forward.register_fake
def _(x, weight, bias, column):
    return x.new_empty(x.shape)


@operator("m4v::causal_conv_silu_back")
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, column: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the taps and of the bias."""
    return backward_with(config_of(BACKWARD[0], x), grad, x, weight, bias, column)


@_backward.register_fake
def _(grad, x, weight, bias, column):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _keep(ctx, inputs, output):
    x, weight, bias, column = inputs
    # Not the parameters themselves, whose data a sharded optimizer takes away before backward.
    ctx.save_for_backward(x, weight.detach(), bias.detach(), column)


def _gradients(ctx, grad):
    return (*_backward(grad, *ctx.saved_tensors), None)


_forward.register_autograd(_gradients, setup_context=_keep)
