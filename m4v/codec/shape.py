"""Sizes of latents: 16 channels, 8x8 pixels a latent pixel, frame 0 alone and then `time_stride` frames a latent frame.

The pyramid VAE and the transform codec take eight frames a latent, Wan's VAE four; the transform codec can, too.
"""

from __future__ import annotations

from m4v.strides import PATCH, SPATIAL, TEMPORAL, WAN_TEMPORAL

__all__ = [
    "CHANNELS", "PATCH", "PYRAMID", "SPATIAL", "TEMPORAL", "TILE_MULTIPLE", "WAN_TEMPORAL", "latent_frames",
    "latent_shape", "nearest_frames", "pixel_frames",
]  # fmt: skip
CHANNELS = 16
PYRAMID = 4  # a pyramid model halves a latent twice
TILE_MULTIPLE = 32  # pixels: the overlap of a spatial tile, a quarter, is whole latent pixels


def nearest_frames(frames: int, time_stride: int) -> tuple[int, ...]:
    """The frame counts k * time_stride + 1 with k >= 1 that are nearest to one that is none: one below, one above."""
    below = max(frames - 1, 0) // time_stride * time_stride + 1
    return tuple(count for count in (below, below + time_stride) if count > 1)


def latent_frames(frames: int, time_stride: int = TEMPORAL) -> int:
    """Latent frames t of T = time_stride * (t-1) + 1 frames; raises ValueError for any other T."""
    if frames < 1 or (frames - 1) % time_stride:
        raise ValueError(f"a causal codec takes {time_stride}k+1 frames, not {frames}")
    return (frames - 1) // time_stride + 1


def pixel_frames(latents: int, time_stride: int = TEMPORAL) -> int:
    """Frames T = time_stride * (t-1) + 1 that t latent frames stand for."""
    if latents < 1:
        raise ValueError(f"a latent has at least one frame, not {latents}")
    return (latents - 1) * time_stride + 1


def latent_shape(frames: int, height: int, width: int, time_stride: int = TEMPORAL) -> tuple[int, int, int]:
    """(t, h, w) of a clip in pixels; raises ValueError when the codec cannot take it."""
    if height < SPATIAL or width < SPATIAL or height % SPATIAL or width % SPATIAL:
        raise ValueError(f"height and width must be multiples of {SPATIAL}, not {height}x{width}")
    return latent_frames(frames, time_stride), height // SPATIAL, width // SPATIAL
