"""Blocks of the causal VAE: per-frame norm and attention, residual blocks, changes of resolution.

All take (b, c, t, h, w). What mixes frames is `CausalConv3d`; all else treats each frame alone, so that only
convolutions need a cache. Parameter names are the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m4v.kernels.selection import fuses_norm
from m4v.vae.convolution import LEAD, CausalConv3d, FrameCache
from m4v.vae.frozen import NormSiluConv, spares

EPSILON = 1e-6
_FUSED = (torch.bfloat16, torch.float16)


class FrameNorm(nn.GroupNorm):
    """Group norm whose statistics are those of one frame: a frame's value cannot depend on later ones."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)  # in channels_last_3d memory these views copy nothing
        normed: Tensor = super().forward(frames.flatten(0, 1))
        return normed.view_as(frames).transpose(1, 2)

    def fuses(self, x: Tensor, conv: CausalConv3d) -> bool:
        """Whether norm, SiLU and what `conv` looks back on come from one kernel: half precision on CUDA with
        weights in channels_last_3d order, and nothing to differentiate."""
        if not x.is_cuda or x.dtype not in _FUSED or (torch.is_grad_enabled() and x.requires_grad):
            return False
        last = conv.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
        return last and _power_of_two(x.shape[1]) and _power_of_two(self.num_groups) and fuses_norm()

    def silu_before(self, x: Tensor, conv: CausalConv3d, cache: FrameCache | None, offset: Tensor | None) -> Tensor:
        """`conv(silu(norm(x + offset)))` by our kernels, without the convolution's bias; see `fuses`."""
        from m4v.kernels.frame_norm import norm_silu  # Triton is there on CUDA only

        x = x.contiguous(memory_format=torch.channels_last_3d)
        filled = norm_silu(x, self.weight, self.bias, self.num_groups, self.eps, lead=LEAD, offset=offset)
        return conv.convolve_after(filled, cache)


def _power_of_two(count: int) -> bool:
    return count & (count - 1) == 0


class ResnetBlock(nn.Module):
    """`x + conv2(silu(norm2(conv1(silu(norm1 x)))))`; a 1x1x1 shortcut where the width changes."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(groups, channels)
        self.conv1 = CausalConv3d(channels, out_channels)
        self.norm2 = FrameNorm(groups, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.conv_shortcut = None if channels == out_channels else CausalConv3d(channels, out_channels, kernel=1)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        if self.norm1.fuses(x, self.conv1):
            return self._fused(x, cache)
        hidden = norm_silu_conv(self.norm1, self.conv1, x, cache)
        hidden = norm_silu_conv(self.norm2, self.conv2, hidden, cache)
        shortcut: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + hidden

    def _fused(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        """The same with fewer passes over memory: biases wait for the next kernel."""
        from m4v.kernels.frame_norm import residual_sum

        x = x.contiguous(memory_format=torch.channels_last_3d)
        hidden = self.norm1.silu_before(x, self.conv1, cache, offset=None)
        hidden = self.norm2.silu_before(hidden, self.conv2, cache, offset=self.conv1.conv.bias)
        shortcut: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        bias = self.conv2.conv.bias
        assert bias is not None  # every convolution of the VAE has one
        return residual_sum(shortcut, hidden, bias)


def norm_silu_conv(norm: FrameNorm, conv: CausalConv3d, x: Tensor, cache: FrameCache | None) -> Tensor:
    """`conv(silu(norm(x)))`, what residual blocks and the ends of both halves are made of."""
    if spares(norm, conv, x, cache):
        return NormSiluConv.apply(x, norm, conv, cache)  # type: ignore[no-any-return, no-untyped-call]
    if not norm.fuses(x, conv):
        return conv(F.silu(norm(x)), cache)  # type: ignore[no-any-return]
    bias = conv.conv.bias
    assert bias is not None
    return norm.silu_before(x, conv, cache, offset=None) + bias[:, None, None, None]


class FrameAttention(nn.Module):
    """Attention over the places of one frame, one head as wide as the features, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = FrameNorm(groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        places = self.group_norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
        mixed = F.scaled_dot_product_attention(self.to_q(places), self.to_k(places), self.to_v(places))
        out: Tensor = self.to_out[0](mixed)
        return x + out.view(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, cache))
        return self.resnets[1](x, cache)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Strided convolution; `stride` is (time, height, width)."""

    def __init__(self, channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=stride)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        return self.conv(x, cache)  # type: ignore[no-any-return]


class SpatialUpsample(nn.Module):
    """Twice the height and width: four times the channels, read as (channel, row, column)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 4 * channels)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        x = self.conv(x, cache)
        b, c, t, h, w = x.shape
        places = x.view(b, c // 4, 2, 2, t, h, w).permute(0, 1, 4, 5, 2, 6, 3)
        return places.reshape(b, c // 4, t, 2 * h, 2 * w)


class TemporalUpsample(nn.Module):
    """Each frame becomes two, but the video's first becomes one: t -> 2t - 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, 2 * channels)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        begins = cache is None or self.conv not in cache
        x = self.conv(x, cache)
        b, c, t, h, w = x.shape
        frames = x.view(b, c // 2, 2, t, h, w).transpose(2, 3).reshape(b, c // 2, 2 * t, h, w)
        return frames[:, :, 1:] if begins else frames
