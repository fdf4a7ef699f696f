"""The causal video VAE: whole, in causal chunks of time, in blended tiles of space, and streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from m4v.codec.shape import SPATIAL, TEMPORAL, TILE_MULTIPLE, latent_shape
from m4v.vae.coder import Decoder, Encoder
from m4v.vae.config import VaeConfig
from m4v.vae.convolution import CausalConv3d, FrameCache
from m4v.vae.posterior import Posterior
from m4v.vae.tiling import chunks, gather, tiled


class CausalVideoVae(nn.Module):
    """8k + 1 frames (b, 3, T, H, W) in [-1, 1] to k + 1 latents (b, c, t, H / 8, W / 8) and back.

    Shared by all methods: `window` cuts time into chunks of so many frames (encode, a multiple of 8) or
    latents (decode), one more in the first; chunks change memory and, but for rounding, no value. `tile` cuts
    pictures into overlapping squares of so many pixels (a multiple of 32), which does change values. Nothing
    of a call is kept in the module. ValueError for sizes that are not of this form.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        moments = 2 * config.encoder_out_channels
        self.quant_conv = CausalConv3d(moments, moments, kernel=1)
        self.post_quant_conv = CausalConv3d(config.decoder_in_channels, config.decoder_in_channels, kernel=1)

    def encode(self, video: Tensor, window: int | None = None, tile: int | None = None) -> Posterior:
        """Posterior of a clip or (T = 1) an image, on the module's device and in its type.

        uint8 pixels, 0 to 255, are taken too: each chunk becomes [-1, 1] by itself, so that a long clip never
        stands in memory as floats. With tiles the moments are blended.
        """
        _check_video(video, window, tile)

        def run(piece: Tensor, _: int) -> Tensor:
            cache, moments = FrameCache(), []
            for cut in chunks(piece.shape[2], window):
                moments.append(self.quant_conv(self.encoder(self._pixels(piece[:, :, cut]), cache)))
            return torch.cat(moments, dim=2)

        return Posterior.from_moments(tiled(run, video, tile, None if tile is None else tile // SPATIAL))

    def decode(self, latents: Tensor, window: int | None = None, tile: int | None = None) -> Tensor:
        """(b, c, t, h, w), un-normalised, to (b, 3, 8 (t - 1) + 1, 8h, 8w), about [-1, 1] and not clipped.

        Tile after tile is decoded in all its chunks, so only one tile's cached frames are held.
        """
        return self.decode_after(latents, context=0, window=window, tile=tile)

    def decode_after(
        self, latents: Tensor, context: int, window: int | None = None, tile: int | None = None, recompute: bool = False
    ) -> Tensor:
        """The frames of `latents[:, :, context:]`, decoded after the others and with gradients to these alone.

        As no frame depends on later latents, these gradients are those of `decode`. `recompute` decodes what
        is after the context in one chunk and keeps only each block's input for the backward pass.
        """
        _check_latents(latents, window, tile)
        if not 0 <= context < latents.shape[2]:
            raise ValueError(f"context must leave at least one of {latents.shape[2]} latents, not {context}")

        def run(piece: Tensor, _: int) -> Tensor:
            cache = FrameCache()
            before, after = piece[:, :, :context], piece[:, :, context:]
            with torch.no_grad():
                for cut in chunks(context, window) if context else ():
                    self._decode_chunk(before[:, :, cut], cache)
            if recompute:
                cache.closed = True
                return self._decode_chunk(after, cache, recompute)
            cuts = chunks(after.shape[2], window, begins=context == 0)
            return torch.cat([self._decode_chunk(after[:, :, cut], cache) for cut in cuts], dim=2)

        return tiled(run, latents, None if tile is None else tile // SPATIAL, tile)

    def decode_stream(self, latents: Iterable[Tensor], window: int = 1, tile: int | None = None) -> Iterator[Tensor]:
        """Frames of each chunk as soon as its latents, (b, c, n, h, w) with any n, have come.

        Joined they are what `decode` gives with the same window and tile. Memory does not grow with length:
        two frames per convolution are kept, of every tile. Gradients are not recorded.
        """
        caches: defaultdict[int, FrameCache] = defaultdict(FrameCache)

        def run(piece: Tensor, number: int) -> Tensor:
            return self._decode_chunk(piece, caches[number])

        for chunk in gather(latents, window):
            _check_latents(chunk, window, tile)
            with torch.no_grad():
                frames = tiled(run, chunk, None if tile is None else tile // SPATIAL, tile)
            yield frames

    def _decode_chunk(self, latents: Tensor, cache: FrameCache, recompute: bool = False) -> Tensor:
        weight = self.post_quant_conv.conv.weight
        latents = latents.to(weight.device, weight.dtype)
        return self.decoder(self.post_quant_conv(latents), cache, recompute)  # type: ignore[no-any-return]

    def _pixels(self, video: Tensor) -> Tensor:
        weight = self.quant_conv.conv.weight
        if video.dtype == torch.uint8:
            return (video.to(weight.device, torch.float32) / 127.5 - 1).to(weight.dtype)
        return video.to(weight.device, weight.dtype)


def _check_video(video: Tensor, window: int | None, tile: int | None) -> None:
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video must be (b, 3, T, H, W), not {tuple(video.shape)}")
    latent_shape(*video.shape[2:])
    if window is not None and (window < TEMPORAL or window % TEMPORAL):
        raise ValueError(f"encode window must be a multiple of {TEMPORAL} frames, not {window}")
    _check_tile(tile)


def _check_latents(latents: Tensor, window: int | None, tile: int | None) -> None:
    if latents.ndim != 5 or not latents.numel():
        raise ValueError(f"latents must be (b, c, t, h, w), not {tuple(latents.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"decode window must be at least one latent, not {window}")
    _check_tile(tile)


def _check_tile(tile: int | None) -> None:
    if tile is not None and (tile < TILE_MULTIPLE or tile % TILE_MULTIPLE):
        raise ValueError(f"tile must be a multiple of {TILE_MULTIPLE} pixels, not {tile}")
