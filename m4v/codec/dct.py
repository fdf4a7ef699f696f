"""Training-free causal transform codec: 16 orthonormal 3-D DCT coefficients of each 8x8 block.

The first frame is coded alone, then each group of eight (or four); gains turn the coefficients into latents that have
mean about 0 and variance about 1 on natural footage after the model family's fixed normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from m4v.codec.basis import BasisFunction, Matrix, analysis, group_blocks
from m4v.codec.config import DctCodecConfig
from m4v.codec.constants import PYRAMID_CONSTANTS
from m4v.codec.dct_tables import FIRST, GROUP, group_functions
from m4v.codec.interface import Frames, Latent, Moments
from m4v.codec.pixels import as_tensor, check_frames, check_latents, to_frames, to_unit
from m4v.codec.shape import CHANNELS, SPATIAL, latent_shape
from m4v.codec.synthesis import CORRELATION, NEIGHBOURS, synthesis
from m4v.core.canonical import digest_json

# (mean, spread) that `m4v.flow` removes from the first latent frame and from the others.
FIRST_CONSTANTS = (-0.04, 1.8726)
GROUP_CONSTANTS = (-0.2343, 3.0986)
ALGORITHM = 1  # raise it when the same tables come to mean other latents
DECODE_CHUNK = 4  # latent frames decoded at a time, which bounds memory


class _Unit:
    """One kind of unit, the first frame or a group: pixels to latents and back, both affine."""

    def __init__(
        self, functions: tuple[BasisFunction, ...], constants: tuple[float, float], frames: int, smoothing: bool
    ):
        self.frames = frames
        gain = np.array([constants[1] / f.std for f in functions])
        offset = constants[0] - gain * [f.mean for f in functions]
        rows = analysis(functions, frames)
        # latent = gain * (rows @ (pixels / 127.5 - 1)) + offset, as one product with raw bytes.
        self.encode_matrix: Matrix = (rows * gain[:, None]).T / 127.5
        self.encode_offset: Matrix = offset - gain * rows.sum(1)
        self.gain = torch.from_numpy(gain).float()
        self.offset = torch.from_numpy(offset).float()
        self.filters = torch.from_numpy(synthesis(functions, frames, smoothing=smoothing)).float()
        # Beyond an edge the picture is mirrored, which turns the sign of odd cosines.
        self.flip_rows = torch.tensor([-1.0 if f.vertical % 2 else 1.0 for f in functions])
        self.flip_columns = torch.tensor([-1.0 if f.horizontal % 2 else 1.0 for f in functions])

    def encode(self, frames: Frames) -> Matrix:
        """(16, h * w) of (T, H, W, 3). One product of fixed size a unit: what follows cannot change it."""
        return (group_blocks(frames).astype(np.float64) @ self.encode_matrix + self.encode_offset).T

    def decode(self, latents: Tensor) -> Tensor:
        """(n, 16, h, w) fp32 to (n, 3, frames, 8h, 8w) in [-1, 1] (not clipped)."""
        n, _, h, w = latents.shape
        device = latents.device
        raw = (latents - self.offset.to(device)[:, None, None]) / self.gain.to(device)[:, None, None]
        padded = F.pad(raw, (1, 1, 1, 1), mode="replicate") * self._edge_signs(h, w).to(device)
        patches = F.unfold(padded, NEIGHBOURS)  # (n, 16 * 9, h * w)
        pixels = self.filters.to(device) @ patches
        blocks = pixels.view(n, self.frames, SPATIAL, SPATIAL, 3, h, w)
        return blocks.permute(0, 4, 1, 5, 2, 6, 3).reshape(n, 3, self.frames, h * SPATIAL, w * SPATIAL)

    def _edge_signs(self, h: int, w: int) -> Tensor:
        signs = torch.ones(CHANNELS, h + 2, w + 2)
        signs[:, [0, -1], :] *= self.flip_rows[:, None, None]
        signs[:, :, [0, -1]] *= self.flip_columns[:, None, None]
        return signs


class DctCodec:
    """`LatentCodec` of `DctCodecConfig`; see the interface for shapes and errors."""

    constants = PYRAMID_CONSTANTS

    def __init__(self, config: DctCodecConfig) -> None:
        self._config, self.time_stride = config, int(config.time_stride)
        self._first = _Unit(FIRST, FIRST_CONSTANTS, 1, config.smoothing)
        self._group = _Unit(group_functions(self.time_stride), GROUP_CONSTANTS, self.time_stride, config.smoothing)

    @cached_property
    def digest(self) -> str:
        return digest_json(
            {
                "config": self._config.canonical(),
                "algorithm": ALGORITHM,
                "first": [list(f) for f in FIRST],
                "group": [list(f) for f in GROUP],
                "constants": [list(FIRST_CONSTANTS), list(GROUP_CONSTANTS)],
                "correlation": CORRELATION,
            }
        )

    def encode(self, frames: Frames) -> Latent:
        check_frames(frames)
        stride = self.time_stride
        t, h, w = latent_shape(frames.shape[0], frames.shape[1], frames.shape[2], stride)
        latent = np.empty((CHANNELS, t, h, w), np.float32)
        latent[:, 0] = self._first.encode(frames[:1]).reshape(CHANNELS, h, w)
        for i in range(1, t):
            start = 1 + stride * (i - 1)
            latent[:, i] = self._group.encode(frames[start : start + stride]).reshape(CHANNELS, h, w)
        return latent

    def encode_moments(self, frames: Frames) -> Moments:
        return Moments(self.encode(frames), None)

    def decode(self, latent: Latent) -> Frames:
        return np.concatenate(list(self.decode_stream([latent])))

    def decode_stream(self, latents: Iterable[Latent | Tensor]) -> Iterator[Frames]:
        unit = self._first
        for latent in latents:
            for one in as_tensor(latent).split(1, dim=1):
                with torch.no_grad():
                    decoded = unit.decode(one.transpose(0, 1).float())
                yield to_frames(to_unit(decoded)[0])
                unit = self._group

    def decode_tensor(self, latents: Tensor, context: int = 0) -> Tensor:
        check_latents(latents, context)
        units = [] if context else [self._first.decode(latents[:, :, 0].float())]
        for start in range(max(1, context), latents.shape[2], DECODE_CHUNK):
            units.append(self._decode_groups(latents[:, :, start : start + DECODE_CHUNK].float()))
        return to_unit(torch.cat(units, dim=2))

    def _decode_groups(self, latents: Tensor) -> Tensor:
        b, _, t, h, w = latents.shape
        video = self._group.decode(latents.transpose(1, 2).reshape(b * t, CHANNELS, h, w))
        joined = video.view(b, t, 3, self.time_stride, h * SPATIAL, w * SPATIAL).transpose(1, 2)
        return joined.reshape(b, 3, t * self.time_stride, h * SPATIAL, w * SPATIAL)
