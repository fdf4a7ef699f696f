"""Frame-causal attention that profits from the scores it skips: dense rectangles without a mask, and a small corner.

An operator of torch's library: torch.compile, CUDA graphs and selective recomputation take it as one operation. Its
gradients are summed in float32 in a fixed order; in torch's deterministic mode the rectangles run on a kernel whose
gradients repeat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from m4v.kernels import frames_plain
from m4v.kernels.frames_dense import dense_backward, dense_forward
from m4v.kernels.frames_plain import Backward, Forward, segment
from m4v.kernels.frames_plan import ColumnPlan, FramePlan, frame_plan
from m4v.kernels.selection import attention_choice, uses_frames_kernel

FRAMES_FROM = 4096  # tokens, of `auto`
GROUP_ROWS = 1920  # queries of a group
HEAD_SIZES = (64, 128)  # channels


class FrameShape(NamedTuple):
    """What the attention of a batch depends on besides its tensors: tokens of each frame, one column after the
    other; frames of each column; text slots of a column; pads (b, text tokens) uint8, 1 where a slot is empty."""

    frames: list[int]
    columns: list[int]
    slots: int
    pads: Tensor


def uses_frames(device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether attention over `tokens` packed tokens runs here."""
    if device.type != "cuda" or dtype.itemsize != 2 or head_dim not in HEAD_SIZES or not uses_frames_kernel():
        return False
    return attention_choice() == "frames" or tokens >= FRAMES_FROM


def attend_frames(q: Tensor, k: Tensor, v: Tensor, shape: FrameShape, group_rows: int = GROUP_ROWS) -> Tensor:
    """Attention per column; q, k, v (b, L, H, size), text of all columns before their image tokens -> (b, L, H size).

    A token sees the frames of its column up to its own and the text, which sees what the first frame sees; pads see
    pads and nothing else sees them. Any device and type of floating point; CUDA: 16 bits. The first call of a layout
    copies tables to the device, so it cannot be the one that a CUDA graph captures.
    """
    out, _ = OPERATOR(q, k, v, shape.pads, shape.frames, shape.columns, shape.slots, group_rows)
    return cast(Tensor, out.flatten(2))


def _corner(q: Tensor) -> ModuleType:
    """The module with the corner's kernels for the device of q, or under Triton's interpreter."""
    if q.is_cuda or (q.dtype != torch.float64 and _interpreted()):
        from m4v.kernels import frames_corner

        return frames_corner
    return frames_plain


def _interpreted() -> bool:
    triton = sys.modules.get("triton")
    return triton is not None and bool(triton.knobs.runtime.interpret)


def _plan(frames: Sequence[int], columns: Sequence[int], slots: int, group_rows: int) -> FramePlan:
    return frame_plan(tuple(frames), tuple(columns), slots, group_rows)


def _rows(x: Tensor, column: ColumnPlan, begin: int, end: int) -> Tensor:
    rows = slice(column.image + begin, column.image + end)
    # The stride of a single sample has no meaning but stands in the keys of cuDNN's plans: let it be the same for
    # videos of any length, which begin with equal groups.
    return x[0, rows][None] if len(x) == 1 else x[:, rows]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, pads: Tensor, frames: Sequence[int], columns: Sequence[int], slots: int,
    group_rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(b, L, H, size) and the log-sum-exp of every row, flat: of each column's text, then of each group (b, H, n)."""
    q, k, v = (u.contiguous() for u in (q, k, v))
    plan, corner = _plan(frames, columns, slots, group_rows), _corner(q)
    out, lse = torch.empty_like(v), _values(q, plan)
    for column in plan.columns:
        parts = [
            Forward(*dense_forward(_rows(q, column, g.first, g.end), _rows(k, column, 0, g.dense),
                                   _rows(v, column, 0, g.dense)))
            for _, g in column.parts
        ]  # fmt: skip
        with torch.cuda.device_of(q):  # Triton launches on the current device
            corner.corner_forward(column, q, k, v, pads, parts, out, lse)
    return out, lse


def _values(q: Tensor, plan: FramePlan) -> Tensor:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_zeros((q.shape[0] * q.shape[2] * plan.rows,), dtype=wide)  # there are gaps between the segments


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, pads: Tensor, frames: Sequence[int], columns: Sequence[int], slots: int,
    group_rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    plan = _plan(frames, columns, slots, group_rows)
    return torch.empty_like(v, memory_format=torch.contiguous_format), _values(q, plan)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, out: Tensor, lse: Tensor, frames: Sequence[int],
    columns: Sequence[int], slots: int, group_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, contiguous."""
    grad, q, k, v = (u.contiguous() for u in (grad, q, k, v))
    plan, corner = _plan(frames, columns, slots, group_rows), _corner(q)
    into = Backward(*(torch.empty_like(u) for u in (q, k, v)))
    for column in plan.columns:
        parts = []
        for place, g in column.parts:
            own = [_rows(u, column, g.first, g.end) for u in (grad, q, out)]
            own_k, own_v = (_rows(u, column, 0, g.dense) for u in (k, v))
            own_lse = segment(lse, q, place, g.end - g.first)
            parts.append(Backward(*dense_backward(own[0], own[1], own_k, own_v, own[2], own_lse)))
        with torch.cuda.device_of(q):
            corner.corner_backward(column, grad, q, k, v, pads, out, lse, parts, into)
    return into.q, into.k, into.v  # an operator returns no named tuple


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, pads: Tensor, out: Tensor, lse: Tensor, frames: Sequence[int],
    columns: Sequence[int], slots: int, group_rows: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.empty_like(u, memory_format=torch.contiguous_format) for u in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.shape = inputs[4:]


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    return (*torch.ops.m4v.frame_attention_backward(grad, *ctx.saved_tensors, *ctx.shape), *(None,) * 5)


def _register(
    name: str, arguments: str, results: str, compute: Callable[..., object], fake: Callable[..., object]
) -> None:
    full = f"m4v::{name}"
    torch.library.define(full, f"({arguments}, {_SHAPE}) -> ({results})")
    torch.library.impl(full, ("cpu", "cuda"), compute)
    torch.library.register_fake(full, fake)


_SHAPE = "int[] frames, int[] columns, int slots, int group_rows"
_register("frame_attention", "Tensor q, Tensor k, Tensor v, Tensor pads", "Tensor, Tensor", _forward, _forward_fake)
_register(
    "frame_attention_backward",
    "Tensor grad, Tensor q, Tensor k, Tensor v, Tensor pads, Tensor out, Tensor lse", "Tensor, Tensor, Tensor",
    _backward, _backward_fake,
)  # fmt: skip
torch.library.register_autograd("m4v::frame_attention", _gradients, setup_context=_keep)
OPERATOR = torch.ops.m4v.frame_attention.default
