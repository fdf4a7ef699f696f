"""What M4V's block is measured against: single-stream blocks as others run them, with random weights.

Attention has one in-projection for mixer and MLP and rotates in bfloat16; Mamba-2 takes the sequence that M4V composes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from block_inputs import Case, Piece
from speed_clock import Unavailable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from m4v.config import ModelConfig
from m4v.model.layers import modulate
from m4v.model.layout import BatchLayout, frame_types, image_ids
from m4v.model.ssd import ssd_chunked
from m4v.model.tables import visual_orders
from m4v.model.temporal import TemporalBranch

Scores = Literal["unmasked", "dense mask", "flex"]
MAMBA_CHUNK = 128  # the quickest with one B and C per head


class GatedBlock(nn.Module):
    """`x + gate * out([mixer, GELU(mlp)])` behind AdaLN."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.heads, self.size = config.width, config.heads, config.head_dim
        self.inner = config.mlp_ratio * config.width
        self.modulation = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width + self.inner, config.width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(temb)).chunk(3, dim=-1)
        mixed, mlp = self.parts(modulate(x, shift, scale))
        y: Tensor = x + gate * self.out(torch.cat([mixed, F.gelu(mlp, approximate="tanh")], dim=-1))
        return y

    def parts(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The mixer's result and the MLP's inner columns."""
        raise NotImplementedError


class AttentionBlock(GatedBlock):
    """Attention over [text, image]: all scores, a dense boolean mask (PyramidFlow as released), or FlexAttention."""

    def __init__(self, config: ModelConfig, case: Case, scores: Scores, device: torch.device) -> None:
        super().__init__(config)
        self.project = nn.Linear(self.width, 3 * self.width + self.inner)
        self.norm_q, self.norm_k = nn.RMSNorm(self.size, eps=1e-6), nn.RMSNorm(self.size, eps=1e-6)
        self.scores, self.time = scores, _times(config, case, device)
        self.seen: Any = self._seen()
        angle = torch.rand(case.tokens, self.size // 2, generator=torch.Generator().manual_seed(3)).to(device) * 6.3
        self.register_buffer("cos", angle.cos().repeat(1, 2))
        self.register_buffer("sin", angle.sin().repeat(1, 2))

    def _seen(self) -> Any:
        time, tokens = self.time, len(self.time)
        if self.scores == "flex":
            from torch.nn.attention.flex_attention import create_block_mask

            if time.device.type != "cuda":
                raise Unavailable("FlexAttention has no backward on the CPU")
            return create_block_mask(
                lambda b, h, q, k: time[q] >= time[k], None, None, tokens, tokens, device=time.device.type
            )
        return (time[:, None] >= time[None])[None, None] if self.scores == "dense mask" else None

    def parts(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        columns, mlp = self.project(inner).split([3 * self.width, self.inner], dim=-1)
        q, k, v = columns.unflatten(-1, (3, self.heads, self.size)).permute(2, 0, 3, 1, 4)
        q, k = self._turned(self.norm_q(q)), self._turned(self.norm_k(k))
        if self.scores == "flex":
            from torch.nn.attention.flex_attention import flex_attention

            out: Any = flex_attention(q, k, v, block_mask=self.seen)
        else:
            kernels = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if self._cudnn(q) else nullcontext()
            with kernels:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen)
        return out.transpose(1, 2).flatten(2), mlp

    def _cudnn(self, q: Tensor) -> bool:
        return self.scores == "unmasked" and q.is_cuda and q.dtype == torch.bfloat16

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned: Tensor = x * self.cos + torch.cat([-second, first], dim=-1) * self.sin
        return turned


def _times(config: ModelConfig, case: Case, device: torch.device) -> Tensor:
    """Latent frame of every token; text is as early as the first."""
    ids = image_ids(case.setting.column())[:, 0].astype(np.int64)
    return torch.from_numpy(np.concatenate([np.zeros(config.text_slots, np.int64), ids])).to(device)


class StockMambaBlock(GatedBlock):
    """mamba-ssm's Mamba-2 with one B and C per head between index and cat: [text, (register, frame) ..., text].

    `module` is `mamba_ssm.modules.mamba2.Mamba2` with its own projections; `function` leaves its output projection out,
    as the block's own follows; `plain` is what the latter computes, in plain torch of any precision. With `temporal`
    the product's temporal branch is added. Text pads are not left out.
    """

    def __init__(
        self, config: ModelConfig, case: Case, kind: Literal["function", "module", "plain"], device: torch.device,
        temporal: bool,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self.kind, self.layout = kind, BatchLayout((case.setting.column(),), config.text_slots)
        self.text, self.chunk = config.text_slots, MAMBA_CHUNK if kind != "plain" else 32
        self.mlp, self.registers = nn.Linear(self.width, self.inner), nn.Parameter(torch.empty(3, self.width))
        self.order, self.first = _order(config, self.layout, device)
        self.types = torch.from_numpy(frame_types(self.layout.columns[0])).to(device)
        self.temporal = TemporalBranch(config) if temporal else None
        self.mamba: Any = self._module(config) if kind == "module" else None
        if kind != "module":
            self.project = nn.Linear(self.width, 4 * self.width + self.heads, bias=False)
            self.conv = nn.Conv1d(3 * self.width, 3 * self.width, config.conv_width, groups=3 * self.width)
            self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.empty(self.heads)) for _ in range(3))
            self.norm = nn.RMSNorm(self.width, eps=1e-5)

    def _module(self, config: ModelConfig) -> Any:
        try:
            from mamba_ssm.modules.mamba2 import Mamba2
        except Exception as error:  # a broken build raises anything
            raise Unavailable(f"mamba_ssm's Mamba2 does not load: {error}") from error
        return Mamba2(
            config.width, d_state=config.head_dim, d_conv=config.conv_width, expand=1, headdim=config.head_dim,
            ngroups=config.heads, chunk_size=MAMBA_CHUNK,
        )  # fmt: skip

    def parts(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        sequence = self._composed(inner)
        if self.kind == "module":
            scanned = self.mamba(sequence)
        else:
            columns = self.project(sequence)
            scanned = self._library(columns) if self.kind == "function" else self._exact(columns)
        mixed = self._decomposed(scanned)
        if self.temporal is not None:
            added = self.temporal(inner[:, self.text :], self.layout)
            mixed = mixed + F.pad(added, (0, 0, self.text, 0))
        return mixed, self.mlp(inner)

    def _composed(self, tokens: Tensor) -> Tensor:
        rows = self.registers[self.types].expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens, rows], dim=1)[:, self.order]

    def _decomposed(self, y: Tensor) -> Tensor:
        packed = y[:, self.first]
        return torch.cat([packed[:, : self.text] + y[:, -self.text :], packed[:, self.text :]], dim=1)

    def _library(self, inner: Tensor) -> Tensor:
        from m4v.kernels.libraries import ssd_kernel

        ssd_kernel()  # loads the module without the package around it, which wants Mamba-1's extension, too
        from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

        found: Tensor = mamba_split_conv1d_scan_combined(
            inner, self.conv.weight[:, 0], self.conv.bias, self.dt_bias, -torch.exp(self.A_log.float()), self.D,
            chunk_size=self.chunk, headdim=self.size, ngroups=self.heads, rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=1e-5, norm_before_gate=False,
        )  # fmt: skip
        return found

    def _exact(self, inner: Tensor) -> Tensor:
        z, xbc, dt = inner.split([self.width, 3 * self.width, self.heads], dim=-1)
        before = self.conv.weight.shape[-1] - 1
        x, b, c = F.silu(self.conv(F.pad(xbc.transpose(1, 2), (before, 0)))).transpose(1, 2).chunk(3, dim=-1)
        more = -x.shape[1] % self.chunk
        x, b, c = (F.pad(u, (0, 0, 0, more)).unflatten(-1, (self.heads, self.size)) for u in (x, b, c))
        step = F.pad(F.softplus(dt + self.dt_bias), (0, 0, 0, more))
        y = ssd_chunked(x, step.to(x.dtype), -self.A_log.exp().to(x.dtype), b, c, self.chunk) + self.D[:, None] * x
        gated: Tensor = self._grouped_norm(y.flatten(2)[:, : inner.shape[1]] * F.silu(z))
        return gated

    def _grouped_norm(self, y: Tensor) -> Tensor:
        """mamba-ssm's gated norm has one group for each of B and C, which is each head."""
        by_head = y.unflatten(-1, (self.heads, self.size))
        return F.rms_norm(by_head, (self.size,), eps=1e-5).flatten(-2) * self.norm.weight


def _order(config: ModelConfig, layout: BatchLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Packed row of [text, image, registers] behind each place of the sequence; place of each text (its first copy)
    and image token."""
    visual = visual_orders(layout, "a", config.scan, registers=True)[0]
    text, tokens = np.arange(config.text_slots), config.text_slots + layout.image_tokens
    begin = np.concatenate([text, visual])
    kept = begin < tokens
    first = np.zeros(tokens, np.int64)
    first[begin[kept]] = np.flatnonzero(kept)
    order = np.concatenate([begin, text])
    return torch.from_numpy(order).to(device), torch.from_numpy(first).to(device)


def baseline(block: GatedBlock, case: Case, device: torch.device, dtype: torch.dtype) -> Piece:
    """The block with random weights in `dtype` and hidden states of the case."""
    generator = torch.Generator(device).manual_seed(11)
    block.to(device)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.normal_(0, 0.02, generator=generator)
            if name.endswith("A_log"):
                parameter.uniform_(0, 2.77, generator=generator)
            elif name.endswith("dt_bias"):
                parameter.uniform_(-6.9, -2.2, generator=generator)
            elif name.endswith(".D") or name == "D" or ("norm" in name and parameter.dim() == 1):
                parameter.add_(1)
    block.to(dtype)
    x = torch.randn(1, case.tokens, block.width, generator=generator, device=device).to(dtype)
    temb = torch.randn(1, 1, block.width, generator=generator, device=device).to(dtype)
    return Piece(block, x, lambda hidden: block(hidden, temb), {}, (x, temb))
