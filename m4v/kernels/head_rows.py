# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What a Triton kernel does with one token's row of heads: RMSNorm of each head, then the turn of its channel pairs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turned(row, turn, sign, heads: tl.constexpr, size: tl.constexpr):
    """`row` (heads, size) with its interleaved pairs turned by the numbers (cos, sin) at `turn`; `sign` -1: back."""
    half: tl.constexpr = size // 2
    place = tl.arange(0, half) * 2
    cos, sin = tl.load(turn + place)[None], tl.load(turn + place + 1)[None] * sign
    even, odd = tl.split(tl.reshape(row, (heads, half, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (heads, size))


@triton.jit
def normed(row, epsilon, size: tl.constexpr):
    """`row` (heads, size) float32 over the root mean square of each head, and one over that."""
    inverse = tl.rsqrt(tl.sum(row * row, axis=1) / size + epsilon)
    return row * inverse[:, None], inverse


@triton.jit
def normed_back(grad, row, weight, epsilon, size: tl.constexpr):
    """Gradients of `row` and, summed over no heads yet, of the weight, from that of `normed(row) * weight`."""
    unit, inverse = normed(row, epsilon, size)
    inner = grad * weight[None]
    along = tl.sum(inner * unit, axis=1) / size
    return (inner - unit * along[:, None]) * inverse[:, None], grad * unit
