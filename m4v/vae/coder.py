"""Encoder and decoder: pixels in [-1, 1] to moments of the latent, and back (spec section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m4v.vae.blocks import (
    Downsample,
    FrameNorm,
    MidBlock,
    ResnetBlock,
    SpatialUpsample,
    TemporalUpsample,
    norm_silu_conv,
)
from m4v.vae.config import LEVELS, VaeConfig
from m4v.vae.convolution import CausalConv3d, FrameCache
from m4v.vae.tiling import chunks

Step = Callable[[Tensor, FrameCache | None], Tensor]
# Where one frame is large, a chunk goes through a level in pieces whose tensors have about so many elements
# (1 GB in half precision): no value changes but for rounding, and memory stops growing with the window.
PIECE_ELEMENTS = 2**29


class DownBlock(nn.Module):
    """Residual blocks, then a spatial and a temporal halving unless it is the last level."""

    def __init__(self, channels: int, out_channels: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [channels, *[out_channels] * layers]
        self.resnets = nn.ModuleList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        self._channels = max(channels, out_channels)
        if not last:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, (1, 2, 2))])
            self.temporal_downsamplers = nn.ModuleList([Downsample(out_channels, (2, 1, 1))])

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        for step in (m for part in self.children() for m in part.children()):
            x = step(x, cache)
        return x

    def pieces(self, x: Tensor, cache: FrameCache | None) -> list[slice]:
        """Cuts of x in time after which each piece still halves to whole frames; one without a cache."""
        if cache is None:
            return [slice(0, x.shape[2])]
        frames = PIECE_ELEMENTS // (self._channels * x[:, 0, 0].numel())
        begins = cast(ResnetBlock, self.resnets[0]).conv1 not in cache
        return chunks(x.shape[2], max(2, frames - frames % 2), begins)


class UpBlock(nn.Module):
    """Residual blocks, then a spatial and a temporal doubling unless it is the last level."""

    def __init__(self, channels: int, out_channels: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [channels, *[out_channels] * layers]
        self.resnets = nn.ModuleList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        # What stands where one pixel of the input stood: 2 x 2 places with two frames' channels.
        self._channels = max(channels, out_channels if last else 8 * out_channels)
        if not last:
            self.upsamplers = nn.ModuleList([SpatialUpsample(out_channels)])
            self.temporal_upsamplers = nn.ModuleList([TemporalUpsample(out_channels)])

    def forward(self, x: Tensor, cache: FrameCache | None = None, recompute: bool = False) -> Tensor:
        for step in (m for part in self.children() for m in part.children()):
            x = _run(step, x, cache, recompute and isinstance(step, ResnetBlock))
        return x

    def frames_at_once(self, x: Tensor) -> int:
        """Frames of x for which the largest tensor, what the last upsampling computes, has `PIECE_ELEMENTS`."""
        return max(1, PIECE_ELEMENTS // (self._channels * x[:, 0, 0].numel()))


class Encoder(nn.Module):
    """(b, 3, T, H, W) to (b, 2 * latent channels, (T - 1) / 8 + 1, H / 8, W / 8)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.encoder_block_out_channels, config.encoder_norm_num_groups
        self.conv_in = CausalConv3d(config.encoder_in_channels, widths[0])
        self.down_blocks = nn.ModuleList([
            DownBlock(widths[max(0, i - 1)], widths[i], config.encoder_layers_per_block[i], groups, i == LEVELS - 1)
            for i in range(LEVELS)
        ])  # fmt: skip
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.encoder_out_channels)

    def forward(self, x: Tensor, cache: FrameCache | None = None) -> Tensor:
        x = self.conv_in(x, cache)
        for block in self.down_blocks:
            cuts = cast(DownBlock, block).pieces(x, cache)
            x = torch.cat([block(x[:, :, cut], cache) for cut in cuts], dim=2)
        x = self.mid_block(x, cache)
        return norm_silu_conv(self.conv_norm_out, self.conv_out, x, cache)


class Decoder(nn.Module):
    """(b, latent channels, t, h, w) to (b, 3, 8 (t - 1) + 1, 8h, 8w); 8t frames when the cache has seen some."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths, groups = config.decoder_block_out_channels[::-1], config.decoder_norm_num_groups
        self.conv_in = CausalConv3d(config.decoder_in_channels, widths[0])
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList([
            UpBlock(widths[max(0, i - 1)], widths[i], config.decoder_layers_per_block[i], groups, i == LEVELS - 1)
            for i in range(LEVELS)
        ])  # fmt: skip
        self.conv_norm_out = FrameNorm(groups, widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.decoder_out_channels)

    def forward(self, z: Tensor, cache: FrameCache | None = None, recompute: bool = False) -> Tensor:
        """`recompute`: keep only the input of each block for the backward pass; the cache must be closed."""
        x = _run(self.mid_block, self.conv_in(z, cache), cache, recompute)
        if cache is None or cache.closed:
            for block in self.up_blocks:
                x = block(x, cache, recompute)
            return self._to_pixels(x, cache)
        return torch.cat(list(self._upwards(x, cache, 0)), dim=2)

    def _upwards(self, x: Tensor, cache: FrameCache, level: int) -> Iterator[Tensor]:
        """Pixels of x, which enters `level`, piece by piece to the end: the largest level never holds a chunk."""
        if level == LEVELS:
            yield self._to_pixels(x, cache)
            return
        block = cast(UpBlock, self.up_blocks[level])
        for piece in x.split(block.frames_at_once(x), dim=2):
            yield from self._upwards(block(piece, cache), cache, level + 1)

    def _to_pixels(self, x: Tensor, cache: FrameCache | None) -> Tensor:
        return norm_silu_conv(self.conv_norm_out, self.conv_out, x, cache)


def _run(step: Step, x: Tensor, cache: FrameCache | None, recompute: bool) -> Tensor:
    if recompute:
        return checkpoint(step, x, cache, use_reentrant=False)  # type: ignore[no-any-return]
    return step(x, cache)
