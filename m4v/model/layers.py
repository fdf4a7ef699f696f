"""Small layers that both kinds of blocks share: norms, rotation, modulation, MLP, embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6


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
    pairs = torch.view_as_complex(x.to(turn.real.dtype).reshape(*x.shape[:-1], -1, 2))
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
        b, _, features = x.shape
        return torch.cat([x[:, c : c + 1].expand(b, n, features) for c, n in enumerate(lengths)], dim=1)

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
        self.linear = nn.Linear(width, parts * width)

    def forward(self, temb: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """temb (b, C, D) -> `parts` tensors that broadcast to (b, tokens, D)."""
        return list(expand_columns(self.linear(F.silu(temb)), lengths).chunk(self.parts, dim=-1))


class _Projection(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """MLP with GELU(tanh); keys `net.0.proj` and `net.2` are the published ones."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        inner = ratio * width
        self.net = nn.ModuleList([_Projection(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class _EmbeddingMLP(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

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
