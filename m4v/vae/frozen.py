"""Convolutions of a frozen network, with a gradient to their input alone and next to nothing kept for it.

Torch keeps the input of every convolution for the gradient of the weights, and of norm and SiLU what each of them
read: at 768 x 1280 that is most of the memory of a reward's backward pass. Nobody asks for the weights' gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from m4v.vae.convolution import LEAD, CausalConv3d, FrameCache, gradient_of_input

if TYPE_CHECKING:
    from m4v.vae.blocks import FrameNorm

PIECE_ELEMENTS = 2**29  # of the gradient that is in work at a time: 1 GB in half precision


def spares(norm: nn.Module, conv: CausalConv3d, x: Tensor, cache: FrameCache | None) -> bool:
    """Whether `NormSiluConv` may stand for norm, SiLU and convolution: the gradient is wanted for x alone, and no later
    chunk goes on from this one."""
    if not (torch.is_grad_enabled() and x.requires_grad) or (cache is not None and not cache.closed):
        return False
    return not any(p.requires_grad for module in (norm, conv) for p in module.parameters())


class NormSiluConv(torch.autograd.Function):
    """`conv(silu(norm(x)))`, which keeps x and works its gradient out frame by frame."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: FrameNorm, conv: CausalConv3d, cache: FrameCache | None) -> Tensor:
        from m4v.vae.blocks import norm_silu_conv

        ctx.save_for_backward(x)
        ctx.norm, ctx.conv = norm, conv
        return norm_silu_conv(norm, conv, x, cache)  # no gradients are recorded in here

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        found = torch.empty_like(x)
        for place, frame in _before_conv(ctx.conv, gradient, x.shape):
            found[:, :, place : place + 1] = _before_norm(ctx.norm, x[:, :, place : place + 1], frame)
        return found, None, None, None


def _before_conv(conv: CausalConv3d, gradient: Tensor, shape: torch.Size) -> Iterator[tuple[int, Tensor]]:
    """Each frame's place and its gradient at what the convolution read, once all frames that read it have added
    theirs. Frames before the first are constant and left out."""
    channels, frames = conv.conv.in_channels, gradient.shape[2]
    at_once = max(1, PIECE_ELEMENTS // (channels * shape[0] * shape[3] * shape[4]))
    carried: Tensor | None = None
    for start in range(0, frames, at_once):
        piece = gradient[:, :, start : start + at_once]
        count = piece.shape[2]
        read = gradient_of_input(conv.conv, piece, (shape[0], channels, count + LEAD, *shape[3:]))
        if carried is not None:
            read[:, :, :LEAD] += carried
        last = start + count == frames
        for i in range(count + LEAD if last else count):
            if start + i >= LEAD:
                yield start + i - LEAD, read[:, :, i : i + 1]
        carried = read[:, :, count:].clone()


def _before_norm(norm: nn.Module, frame: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at one frame (b, c, 1, h, w) of that at `silu(norm(frame))`."""
    with torch.enable_grad():
        given = frame.detach().requires_grad_()
        out = F.silu(norm(given))
    (found,) = torch.autograd.grad(out, given, gradient)
    return found
