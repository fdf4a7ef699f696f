"""The MM-DiM mixer: re-composition around a state-space model shaped like the attention it replaces.

C, B and x come from projections of the size of q, k and v (Mamba-in-Llama; the dual order pairs C with q and B
with k). Everything that acts per token runs on the packed tokens, so the text is projected once although it
stands in the sequence twice; the gate z multiplies after the inverse, where both copies are already summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.config import ModelConfig
from m4v.kernels import scan as fast
from m4v.model.layers import Linear, RMSNorm, rotate
from m4v.model.recomposition import Recomposition, compose, decompose
from m4v.model.selective_scan import per_channel, selective_scan
from m4v.model.ssd import ssd_chunked

if TYPE_CHECKING:
    from m4v.parallel.states import Scanned

GATHERED_CONVOLUTION = True  # False: the composition always writes what the convolution reads
REGISTER_TYPES = 3  # low, mid, high resolution
FLOAT32_PARAMETERS = ("A_log", "dt_bias", "D")  # bfloat16 here makes training diverge (mamba issues 6 and 72)


class CausalConv(nn.Module):
    """Depthwise causal convolution along the sequence, then SiLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(b, N, D) -> (b, N, D); tap j of the weight looks j - (width - 1) tokens ahead."""
        width = self.weight.shape[1]
        if fast.convolves_fast(x, width):
            return fast.causal_conv_silu(x, self.weight, self.bias)
        out = F.conv1d(F.pad(x.transpose(1, 2), (width - 1, 0)), self.weight[:, None], self.bias, groups=x.shape[-1])
        return F.silu(out.transpose(1, 2))

    def gathers(self, x: Tensor) -> bool:
        """Whether the convolution of rows like x gathers them itself: on our own kernel, without gradients. The bits
        are those of `forward`."""
        return (
            GATHERED_CONVOLUTION and not torch.is_grad_enabled() and fast.uses_own_convolution(x, self.weight.shape[1])
        )


class MambaMixer(nn.Module):
    """x', the modulated packed tokens, to the mixer output before the block's shared `proj_out`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.config = config.width, config
        self.to_c, self.to_b, self.to_x, self.to_z = (Linear(width, width) for _ in range(4))
        self.norm_c, self.norm_b = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.conv = CausalConv(width, config.conv_width)
        if config.ssm == "ssd":
            self.to_dt: nn.Module = Linear(width, config.heads, bias=False)
            self.dt_bias = nn.Parameter(torch.empty(config.heads))
            self.A_log = nn.Parameter(torch.empty(config.heads))
            self.D = nn.Parameter(torch.empty(config.heads))
        else:
            down, up = Linear(width, config.dt_rank, bias=False), Linear(config.dt_rank, width, bias=False)
            self.to_dt = nn.Sequential(down, up)
            self.dt_bias = nn.Parameter(torch.empty(width))
            self.A_log = nn.Parameter(torch.empty(width, config.ssm_state))
            self.D = nn.Parameter(torch.empty(width))
        self.registers = nn.Parameter(torch.empty(REGISTER_TYPES, width)) if config.registers else None

    def forward(self, x: Tensor, types: Tensor, turn: Tensor, tables: Recomposition) -> Tensor:
        """x (b, tokens, D); `types` (frames, 3) one-hot register types; `turn` rotates tokens and registers."""
        segment = tables.segment
        packed = x if segment is None else segment.with_text(x)
        if self.registers is not None:
            # A matrix product, so every type gets a gradient, zero if unused, whatever the batch holds.
            rows = types.to(x.dtype) @ self.registers.to(x.dtype)
            packed = torch.cat([packed, rows.expand(x.shape[0], *rows.shape)], dim=1)
        exact = torch.promote_types(x.dtype, torch.float32)
        heads = (self.config.heads, self.config.head_dim)
        c = self.norm_c(self.to_c(packed).unflatten(-1, heads))
        b = self.norm_b(self.to_b(packed).unflatten(-1, heads))
        if self.config.rope_on_ssm:
            c, b = rotate(c, turn), rotate(b, turn)
        dt = F.softplus(self.to_dt(packed).to(exact) + self.dt_bias.to(exact))
        values = compose(self.to_x(packed), tables)
        values = self.conv(values if segment is None else segment.with_halo(values)) * tables.real
        b, c, dt = compose(b.flatten(2), tables), compose(c.flatten(2), tables), compose(dt, tables)
        y = self.scan(values, dt, b, c, tables)
        if segment is not None:
            y = (y + segment.carried(self._scanned(values, dt, b, c)).flatten(2)).to(y.dtype)
        mixed = decompose(y, tables)
        if segment is not None:
            mixed = segment.without_text(mixed)
        return mixed.to(x.dtype) * F.silu(self.to_z(x))

    def _scanned(self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Scanned:
        """The inputs of `scan`, by head (SSD) or by channel."""
        from m4v.parallel.states import Scanned

        a = -self.A_log.to(dt.dtype).exp()
        if self.config.ssm == "ssd":
            heads = (self.config.heads, self.config.head_dim)
            return Scanned(x.unflatten(-1, heads), dt, a, b.unflatten(-1, heads), c.unflatten(-1, heads))
        by_channel = (per_channel(u.unflatten(-1, (-1, self.config.ssm_state)), x.shape[-1]) for u in (b, c))
        return Scanned(x, dt, a, *by_channel)

    def scan(self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, tables: Recomposition) -> Tensor:
        """Values x, keys b and queries c (b, N, D), step sizes dt -> (b, N, D) with the skip term."""
        config = self.config
        library = fast.scans_fast(x, config.ssm, config.head_dim, config.head_dim)
        if not library:
            x, b, c = x.to(dt.dtype), b.to(dt.dtype), c.to(dt.dtype)
        a, skip = -self.A_log.to(dt.dtype).exp(), self.D.to(dt.dtype)
        # One column needs no table, whose copy to the device could not be part of a CUDA graph.
        chunk_column = None if tables.column is None else tables.chunk_column
        if config.ssm == "ssd":
            heads = (config.heads, config.head_dim)
            x, b, c = (u.unflatten(-1, heads) for u in (x, b, c))
            if library:
                return fast.ssd_scan(x, dt, a, b, c, skip, tables.column).flatten(2)
            y = ssd_chunked(x, dt, a, b, c, config.chunk_size, chunk_column)
            return (y + skip[:, None] * x).flatten(2)
        groups = (-1, config.ssm_state)
        b, c = b.unflatten(-1, groups), c.unflatten(-1, groups)
        if library:
            parts = (tuple(u[:, begin:end] for u in (x, dt, b, c)) for begin, end in tables.spans)
            return torch.cat([fast.selective_scan(x, dt, a, b, c, skip) for x, dt, b, c in parts], dim=1)
        return selective_scan(x, dt, a, b, c, config.chunk_size, chunk_column) + skip * x
