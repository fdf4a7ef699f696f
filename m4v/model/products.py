"""Products of the same rows with the weights of several layers: what blocks on Triton kernels take instead of `Linear`.

The same results to the bit, where no columns are added. Backward, the gradient of the rows is summed inside the
products instead of by additions between them; gradients of float32 weights under autocast leave the products in float32
instead of rounded; biases are summed in float32 by a kernel. All of it whatever a block keeps, so that recomputation
changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from m4v.model.checkpointing import Tape, current_tape
from m4v.model.layers import Linear

ALIGNED = 8  # columns of 16 bits in the 16 bytes that cuBLAS' fast kernels read and write at once


def products(x: Tensor, layers: Sequence[Linear], aligned: bool = False) -> tuple[Tensor, ...]:
    """`layer(x)` of each layer; x (b, L, D). What is `aligned` has columns of zeros behind a layer's own, up to a
    multiple of `ALIGNED`; not so in torch.compile, which sees to it itself."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        aligned &= not torch.compiler.is_compiling()
        return tuple((_widened if aligned and _missing(u.weight) else _linear)(x, u) for u in layers)
    parameters = [u for layer in layers for u in (layer.weight, layer.bias)]
    made: tuple[Tensor, ...] = _Products.apply(x, current_tape(), aligned, *parameters)  # type: ignore[no-untyped-call]
    return made


def product(x: Tensor, layer: Linear) -> Tensor:
    """`layer(x)`."""
    return products(x, [layer])[0]


def _missing(parameter: Tensor) -> int:
    """Rows of a weight, or numbers of a bias, up to a multiple of `ALIGNED`."""
    return -parameter.shape[0] % ALIGNED


def _padded(parameter: Tensor) -> Tensor:
    """A copy of a weight or bias with zeros for what is missing."""
    return F.pad(parameter, (0,) * (2 * parameter.ndim - 1) + (_missing(parameter),))


def _widened(x: Tensor, layer: Linear) -> Tensor:
    return F.linear(x, _padded(layer.weight), None if layer.bias is None else _padded(layer.bias))


def keeps_nothing(x: Tensor, layer: Linear) -> bool:
    """Whether neither gradients nor a compiler need what lies between operations, and `layer` has the type of x."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.dtype == layer.weight.dtype and not torch.is_autocast_enabled(x.device.type)


def _linear(x: Tensor, layer: Linear) -> Tensor:
    """`layer(x)`. Samples that do not lie behind one another, such as the image's part of [text, image], would be
    copied first and their bias added last, each a pass over memory."""
    apart = x.is_cuda and not x.is_contiguous() and x[0].is_contiguous()
    if apart and layer.bias is not None and keeps_nothing(x, layer):
        return _sample_by_sample(x, layer)
    return layer(x)  # type: ignore[no-any-return]


def _sample_by_sample(x: Tensor, layer: Linear) -> Tensor:
    """`layer(x)` of samples (b, L, D) that lie apart, one product each."""
    out = x.new_empty((*x.shape[:2], layer.weight.shape[0]))
    for rows, into in zip(x, out, strict=True):
        torch.addmm(layer.bias, rows, layer.weight.t(), out=into)
    return out


class _Products(torch.autograd.Function):
    """The results are on the tape of a block that keeps selectively."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tape: Tape | None, aligned: bool, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        # Not the parameters themselves, whose data a sharded optimizer takes away before backward. Where ZeRO-3 gathers
        # and nothing is recomputed, what is saved here keeps the gathered weights in memory until backward.
        weights = [u.detach() for u in parameters[::2] if u is not None]
        biases = [None if u is None else u.detach() for u in parameters[1::2]]
        ctx.weight_types = [u.dtype for u in weights]
        ctx.bias_types = [None if u is None else u.dtype for u in biases]
        ctx.columns = [len(u) for u in weights]
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            # By hand: the cache of autocast would keep copies of weights that no gradient can reach from here.
            dtype = torch.get_autocast_dtype(kind)
            x, weights = x.to(dtype) if tape is None else tape.lowered(x, dtype), [u.to(dtype) for u in weights]
        if aligned:
            biases = [u if u is None or not _missing(u) else _padded(u) for u in biases]
            weights = [_padded(u) if _missing(u) else u for u in weights]
        ctx.save_for_backward(x, *weights)
        outs = []
        for weight, offset in zip(weights, biases, strict=True):

            def compute(weight: Tensor = weight, offset: Tensor | None = offset) -> Tensor:
                return F.linear(x, weight, offset)

            outs.append(compute() if tape is None else tape.result(compute, weight.shape))
        return tuple(outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        of_x, _, _, *of_parameters = ctx.needs_input_grad
        rows = x.reshape(-1, x.shape[-1])
        to_x: Tensor | None = None
        found: list[Tensor | None] = []
        for number, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            mine = grad.reshape(-1, grad.shape[-1])
            if of_x:
                to_x = mine.mm(weight) if to_x is None else to_x.addmm_(mine, weight)
            of_weight, of_bias = of_parameters[2 * number : 2 * number + 2]
            count = ctx.columns[number]
            found.append(_first(_of_weight(mine, rows, ctx.weight_types[number]), count) if of_weight else None)
            found.append(_first(_of_bias(mine, ctx.bias_types[number]), count) if of_bias else None)
        return (None if to_x is None else to_x.view(x.shape), None, None, *found)


def _first(grad: Tensor, count: int) -> Tensor:
    """A parameter's own part of the gradient of a padded one."""
    return grad if len(grad) == count else grad[:count]


def _of_weight(grad: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    if grad.is_cuda and dtype == torch.float32 and grad.dtype != dtype:
        return torch.mm(grad.t(), rows, out_dtype=dtype)  # type: ignore[call-overload, no-any-return]
    return grad.t().mm(rows)


def _of_bias(grad: Tensor, dtype: torch.dtype) -> Tensor:
    from m4v.kernels.column_sums import column_sums

    return column_sums(grad).to(dtype)
