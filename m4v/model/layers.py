"""Small layers that both kinds of blocks share: norms, rotation, modulation, MLP, embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from m4v.model.checkpointing import Tape, current_tape
from m4v.model.layout import column_rows

NORM_EPS = 1e-6


class _Product(torch.autograd.Function):
    """`F.linear` whose result is on a tape. Its gradients are those of torch's own products, to the bit. (Not of the
    product that DeepSpeed puts there where ZeRO-3 gathers: on CUDA under autocast that sums biases in float32.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tape: Tape) -> Tensor:
        kind = x.device.type
        # Not the parameter itself, whose data a sharded optimizer takes away before backward.
        weight = weight.detach()
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            # By hand: the cache of autocast would keep copies of weights that no gradient can reach from here.
            dtype = torch.get_autocast_dtype(kind)
            x, weight = tape.lowered(x, dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        offset = None if bias is None else bias.detach()
        out: Tensor = tape.result(lambda: F.linear(x, weight, offset), weight.shape)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            rows.mm(weight).view(x.shape) if of_x else None,
            rows.t().mm(x.reshape(-1, x.shape[-1])) if of_weight else None,
            # Autocast, where this pass runs in it on CUDA, sums in float32; torch's own product rounds that sum.
            rows.sum(dim=0).to(grad.dtype) if of_bias and ctx.biased else None,
            None,
        )


class Linear(nn.Linear):
    """A product with weights, whose result a block that keeps selectively finds again in its second forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        tape = current_tape()
        if tape is None or not torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        out: Tensor = _Product.apply(x, self.weight, self.bias, tape)  # type: ignore[no-untyped-call]
        return out


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a weight, computed in float32 or better."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), NORM_EPS)


class _Rotate(torch.autograd.Function):
    """Complex product with unit numbers; the gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        return _turn(x, turn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (turn,) = ctx.saved_tensors
        return _turn(grad, turn.conj()), None


def _turn(x: Tensor, turn: Tensor) -> Tensor:
    real = torch.float64 if turn.dtype == torch.complex128 else torch.float32
    # A gradient may come with heads and tokens or channels exchanged in memory; pairs must lie together.
    pairs = torch.view_as_complex(x.to(real).contiguous().reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the interleaved channel pairs of x (b, tokens, heads, head size) by `turn` (tokens, head size / 2),
    unit complex numbers; computed in the precision of `turn`."""
    rotated: Tensor = _Rotate.apply(x, turn[:, None])  # type: ignore[no-untyped-call]
    return rotated


class _ExpandColumns(torch.autograd.Function):
    """(b, C, F) -> (b, tokens, F), column c repeated `lengths[c]` times; its gradient sums in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        ctx.lengths = lengths
        b, columns, features = x.shape
        rows = column_rows(lengths, b, str(x.device))
        return x.reshape(b * columns, features).index_select(0, rows).view(b, -1, features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        parts = grad.split(ctx.lengths, dim=1)
        return torch.stack([part.sum(dim=1) for part in parts], dim=1), None


def expand_columns(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Give every token its column's row of x (b, C, F)."""
    if len(lengths) == 1:
        return x  # broadcasts
    expanded: Tensor = _ExpandColumns.apply(x, tuple(lengths))  # type: ignore[no-untyped-call]
    return expanded


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then the conditioned shift and scale (already one row per token)."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Modulation(nn.Module):
    """AdaLN: `parts` vectors of the width from the conditioning, through SiLU and a Linear."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(width, parts * width)

    def forward(self, temb: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """temb (b, C, D) -> `parts` tensors that broadcast to (b, tokens, D)."""
        return list(expand_columns(self.linear(F.silu(temb)), lengths).chunk(self.parts, dim=-1))


class _Projection(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """MLP with GELU(tanh); keys `net.0.proj` and `net.2` are the published ones."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        inner = ratio * width
        self.net = nn.ModuleList([_Projection(width, inner), nn.Identity(), Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class _EmbeddingMLP(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(inputs, width)
        self.linear_2 = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class TimeTextEmbedding(nn.Module):
    """Conditioning vector from the timestep (0, 1000] and the pooled text."""

    CHANNELS = 256

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.timestep_embedder = _EmbeddingMLP(self.CHANNELS, width)
        self.text_embedder = _EmbeddingMLP(pooled, width)

    def forward(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        embedded: Tensor = self.timestep_embedder(sinusoid(timesteps, self.CHANNELS).to(pooled.dtype))
        text: Tensor = self.text_embedder(pooled)
        return embedded + text


def sinusoid(timesteps: Tensor, channels: int) -> Tensor:
    """[cos | sin] of the raw timesteps (n,), frequencies exp(-ln 10000 k / half), in float32 or better."""
    half = channels // 2
    dtype = torch.float64 if timesteps.dtype == torch.float64 else torch.float32
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=dtype, device=timesteps.device) / half)
    angle = timesteps.to(dtype)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def patchify(clip: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b, t h/2 w/2, 4c); inside a token: row, column, channel (channel fastest)."""
    b, c, t, h, w = clip.shape
    blocks = clip.reshape(b, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 4, 6, 1)
    return blocks.reshape(b, t * (h // 2) * (w // 2), 4 * c)


def unpatchify(tokens: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Inverse of `patchify`; height and width count tokens."""
    b, _, features = tokens.shape
    blocks = tokens.reshape(b, frames, height, width, 2, 2, features // 4).permute(0, 6, 1, 2, 4, 3, 5)
    return blocks.reshape(b, features // 4, frames, height * 2, width * 2)
