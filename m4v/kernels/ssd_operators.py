# mypy: disable-error-code="untyped-decorator"
"""The Mamba-2 scan on our Triton kernels as operators of torch: traceable, differentiable, the same bits every time.

Chunk states, their passing and the chunks' outputs are a kernel each. C B^T never leaves the chip, products add up
in float32, and the backward pass sums what chunks share in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from m4v.kernels.operators import operator
from m4v.kernels.ssd_arguments import constants_of, strides_of
from m4v.kernels.ssd_backward import _chunk_gradients
from m4v.kernels.ssd_configs import CONFIGS, SIZES, SsdConfig, default_config, default_segments, shown_right
from m4v.kernels.ssd_forward import _chunk_outputs, _chunk_states, _pass_states
from m4v.kernels.ssd_segments import ssd_outputs


def suits(x: Tensor, b: Tensor) -> bool:
    """Whether the kernels take heads of x (b, L, H, P) with states of b (b, L, H, N)."""
    return x.shape[-1] in SIZES and b.shape[-1] in SIZES


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None = None,
    bias: Tensor | None = None, softplus: bool = False, config: int | None = None, segments: int | None = None,
) -> Tensor:  # fmt: skip
    """Mamba-2 scan with `skip * x` added: x (b, L, H, P), dt (b, L, H), a, skip and bias (H,), b and c (b, L, H, N),
    P and N in `SIZES` -> (b, L, H, P) in the type of x.

    `column` (b, L) int32 names each token's sequence, one run of tokens each: neither states nor products pass
    between two. `softplus`: step sizes are softplus(dt + bias). Decays `a` must be <= 0 and step sizes >= 0.
    `config` numbers one of `CONFIGS`. Without gradients, `segments` numbers one of `SEGMENTS`, whose kernels write no
    chunk's state: the default for the sizes of our models, with other roundings than where a gradient may be asked for.
    Raises ValueError for other sizes or types of x, b and c that differ, and on CUDA for sizes that were not shown
    right there, unless a `config` is named (tests and benchmarks).
    """
    if not suits(x, b) or x.shape[:3] != b.shape[:3] or c.shape != b.shape or not x.dtype == b.dtype == c.dtype:
        raise ValueError(f"no SSD kernel for x {x.shape} {x.dtype}, b {b.shape} {b.dtype}, c {c.shape} {c.dtype}")
    exact = x.dtype == torch.float32
    if config is None and segments is None:
        segments = default_segments(x.shape[-1], b.shape[-1], exact)
    if config is None:
        if x.is_cuda and not shown_right(x.shape[-1], b.shape[-1], exact):
            raise ValueError(f"SSD kernel not shown right on a GPU for x {x.shape} {x.dtype}, b {b.shape}")
        config = default_config(x.shape[-1], b.shape[-1], exact)
    column = None if column is None else column.to(torch.int32).contiguous()
    dt, a, skip = dt.contiguous(), a.contiguous(), skip.contiguous()
    if segments is not None and not torch.is_grad_enabled():
        return ssd_outputs(_rows(x), dt, a, _rows(b), _rows(c), skip, column, bias, softplus, segments)
    y: Tensor = _forward(_rows(x), dt, a, _rows(b), _rows(c), skip, column, bias, softplus, config)[0]
    return y


def _rows(u: Tensor) -> Tensor:
    """u if the channels of its heads lie behind each other, else a copy where they do."""
    return u if u.stride(-1) == 1 else u.contiguous()


def _passed(local: Tensor, decay: Tensor, kind: torch.dtype, reverse: bool, config: SsdConfig) -> Tensor:
    """Running states (b, chunks, H, N, P) before each chunk, or behind it."""
    batch, chunks, heads, state, size = local.shape
    out, elements = torch.empty_like(local, dtype=kind), state * size
    block = min(config.pass_block, elements)
    _pass_states[heads, elements // block, batch](
        local, decay, out, chunks, heads, elements, block, config.pass_unroll, reverse, num_warps=config.pass_warps
    )
    return out


@operator("m4v::ssd_forward")
def _forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None, bias: Tensor | None,
    softplus: bool, number: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the state before each chunk (b, chunks, H, N, P) in the type of x, and each chunk's decay (b, chunks, H)."""
    config = CONFIGS[number]
    (batch, length, heads, size), state = x.shape, b.shape[-1]
    chunks = triton.cdiv(length, config.chunk)
    local = torch.empty((batch, chunks, heads, state, size), dtype=torch.float32, device=x.device)
    decay = torch.empty((batch, chunks, heads), dtype=torch.float32, device=x.device)
    y = torch.empty((batch, length, heads, size), dtype=x.dtype, device=x.device)
    common, grid = {"chunk": config.chunk} | constants_of(x, b, column, bias, softplus), (heads, chunks, batch)
    with torch.cuda.device_of(x):
        _chunk_states[grid](
            b, x, dt, bias, a, column, local, decay, length, heads, chunks, *strides_of(b, x), reverse=False,
            num_warps=config.states_warps, **common,
        )  # fmt: skip
        states = _passed(local, decay, x.dtype, False, config)
        _chunk_outputs[grid](
            x, dt, bias, a, b, c, skip, column, states, y, length, heads, chunks, *strides_of(x, b, c),
            num_warps=config.outputs_warps, **common,
        )  # fmt: skip
    return y, states, decay


@_forward.register_fake
def _(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None, bias: Tensor | None,
    softplus: bool, number: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, size = x.shape
    chunks = -(-length // CONFIGS[number].chunk)
    states = x.new_empty((batch, chunks, heads, b.shape[-1], size))
    return x.new_empty(x.shape), states, x.new_empty((batch, chunks, heads), dtype=torch.float32)


@operator("m4v::ssd_backward")
def _backward(
    dy: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None,
    bias: Tensor | None, states: Tensor, decay: Tensor, softplus: bool, number: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, dt, b and c, and (3, b, chunks, H) float32: those of a, skip and bias per chunk."""
    config = CONFIGS[number]
    batch, length, heads, _ = x.shape
    chunks = decay.shape[1]
    local = torch.empty(states.shape, dtype=torch.float32, device=x.device)
    dx, db, dc = (torch.empty(u.shape, dtype=u.dtype, device=u.device) for u in (x, b, c))
    d_dt = torch.empty_like(dt)
    partial = torch.empty((3, batch, chunks, heads), dtype=torch.float32, device=x.device)
    common, grid = {"chunk": config.chunk} | constants_of(x, b, column, bias, softplus), (heads, chunks, batch)
    with torch.cuda.device_of(x):
        _chunk_states[grid](
            c, dy, dt, bias, a, column, local, decay, length, heads, chunks, *strides_of(c, dy), reverse=True,
            num_warps=config.states_warps, **common,
        )  # fmt: skip
        gradients = _passed(local, decay, x.dtype, True, config)
        _chunk_gradients[grid](
            x, dt, bias, a, b, c, skip, column, dy, states, gradients, decay, dx, d_dt, db, dc, partial, length, heads,
            chunks, *strides_of(x, b, c, dy), block=min(config.gradients_block, config.chunk),
            num_warps=config.gradients_warps, **common,
        )  # fmt: skip
    return dx, d_dt, db, dc, partial


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, column: Tensor | None,
    bias: Tensor | None, states: Tensor, decay: Tensor, softplus: bool, number: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    partial = decay.new_empty((3, *decay.shape))
    return x.new_empty(x.shape), torch.empty_like(dt), b.new_empty(b.shape), c.new_empty(c.shape), partial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, number = inputs
    _, states, decay = output
    ctx.save_for_backward(*tensors, states, decay)
    ctx.mark_non_differentiable(states, decay)
    ctx.softplus, ctx.number = softplus, number


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, dt, a, b, c, skip, column, bias, states, decay = ctx.saved_tensors
    dx, d_dt, db, dc, partial = _backward(
        _rows(dy), x, dt, a, b, c, skip, column, bias, states, decay, ctx.softplus, ctx.number
    )  # fmt: skip
    of_a, of_skip, of_bias = partial.sum((1, 2))
    return (
        dx, d_dt, of_a.to(a.dtype), db, dc, of_skip.to(skip.dtype), None,
        None if bias is None else of_bias.to(bias.dtype), None, None,
    )  # fmt: skip


_forward.register_autograd(_gradients, setup_context=_save)
