# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Group norm of single frames with SiLU on channels-last video, and the residual sum, as Triton kernels.

Torch's group norm knows no channels-last video: it copies it to channels-first and back, which at 768p costs
four times what the convolutions do. Here a frame is read twice and written once, straight into the buffer that
the next convolution reads. Sums run in float32 in an order fixed by the shape: equal input gives equal bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 8192  # of one tile
_TILES = 16  # tiles that one program sums up
_WARPS = 8


@triton.jit
def _moments(
    x, offset, means, squares, places, channels: tl.constexpr, groups: tl.constexpr, rows: tl.constexpr,
    tiles: tl.constexpr, shifted: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances from it, of each group over a run of places of one frame."""
    chunk, frame = tl.program_id(0), tl.program_id(1).to(tl.int64)
    width: tl.constexpr = channels // groups
    columns = tl.arange(0, channels)
    begin = x + frame * places * channels
    count, mean = 0.0, tl.zeros((groups,), tl.float32)
    square = tl.zeros((groups,), tl.float32)
    for tile in range(tiles):
        first = (chunk * tiles + tile) * rows
        row = first + tl.arange(0, rows)
        inside = row < places
        value = tl.load(begin + row[:, None] * channels + columns[None], mask=inside[:, None], other=0.0).to(tl.float32)
        if shifted:
            value += tl.load(offset + columns).to(tl.float32)[None]
        value = tl.where(inside[:, None], value, 0.0)
        here = tl.maximum(tl.minimum(places - first, rows), 0) * width * 1.0
        grouped = tl.reshape(value, (rows, groups, width))
        here_mean = tl.sum(tl.sum(grouped, axis=2), axis=0) / tl.maximum(here, 1.0)
        apart = tl.where(inside[:, None, None], grouped - here_mean[None, :, None], 0.0)
        here_square = tl.sum(tl.sum(apart * apart, axis=2), axis=0)
        total = count + here
        step = here_mean - mean
        share = here / tl.maximum(total, 1.0)
        mean += step * share
        square += here_square + step * step * count * share
        count = total
    place = (frame * tl.num_programs(0) + chunk) * groups + tl.arange(0, groups)
    tl.store(means + place, mean)
    tl.store(squares + place, square)


@triton.jit
def _normalise(
    x, scale, shift, out, places, frames, lead, channels: tl.constexpr, rows: tl.constexpr, silu: tl.constexpr
):
    """`x * scale + shift` by frame and channel, then SiLU; `lead` frames are left free before each video."""
    frame = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    columns = tl.arange(0, channels)
    inside = (row < places)[:, None]
    place = row[:, None] * channels + columns[None]
    value = tl.load(x + frame * places * channels + place, mask=inside, other=0.0).to(tl.float32)
    factor, term = tl.load(scale + frame * channels + columns), tl.load(shift + frame * channels + columns)
    value = value * factor[None] + term[None]
    if silu:
        value = value * tl.sigmoid(value)
    target = (frame // frames) * (frames + lead) + lead + frame % frames
    tl.store(out + target * places * channels + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sum(x, hidden, bias, out, elements, channels: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < elements
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + place % channels).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, lead: int = 0, offset: Tensor | None = None
) -> Tensor:
    """`silu(group_norm(x + offset))` of each frame of x (b, c, t, h, w) in channels-last memory.

    The result is (b, c, lead + t, h, w), in that memory too; its first `lead` frames are not written. `offset`
    (c,) is the bias that the convolution before has left out. Channels and groups are powers of two.
    """
    b, c, t, h, w = x.shape
    frames, places, rows = b * t, h * w, _ELEMENTS // c
    chunks = triton.cdiv(places, rows * _TILES)
    means, squares = (x.new_empty((frames, chunks, groups), dtype=torch.float32) for _ in range(2))
    _moments[chunks, frames](
        x, offset if offset is not None else bias, means, squares, places, c, groups, rows, _TILES,
        offset is not None, num_warps=_WARPS,
    )  # fmt: skip
    scale, shift = _affine(means, squares, places, rows * _TILES, weight, bias, epsilon)
    if offset is not None:
        shift = torch.addcmul(shift, scale, offset.float()[None])
    out = torch.empty((b, c, lead + t, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    _normalise[triton.cdiv(places, rows), frames](
        x, scale, shift, out, places, t, lead, c, rows, True, num_warps=_WARPS
    )  # fmt: skip
    return out


def _affine(
    means: Tensor, squares: Tensor, places: int, places_per_chunk: int, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift (frames, channels) from the chunks' moments (frames, chunks, groups)."""
    chunks, groups = means.shape[1:]
    share = torch.full((chunks, 1), places_per_chunk / places, device=means.device)
    share[-1] = 1 - (chunks - 1) * places_per_chunk / places
    width = weight.numel() // groups
    mean = (means * share).sum(1)
    apart = (means - mean[:, None]).square()
    variance = squares.sum(1) / (places * width) + (apart * share).sum(1)
    scale = torch.rsqrt(variance + epsilon).repeat_interleave(width, 1) * weight.float()
    return scale, bias.float() - mean.repeat_interleave(width, 1) * scale


def residual_sum(x: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
    """`x + hidden + bias` of two (b, c, t, h, w) in channels-last memory; bias is (c,)."""
    out = torch.empty_like(x)
    block = 2048
    _sum[(triton.cdiv(x.numel(), block),)](x, hidden, bias, out, x.numel(), x.shape[1], block, num_warps=4)
    return out
