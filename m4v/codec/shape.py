"""Sizes of latents: 16 channels, 8x8 pixels a latent pixel, frame 0 alone and then eight frames a latent frame."""

from __future__ import annotations

CHANNELS = 16
SPATIAL = 8
TEMPORAL = 8
TILE_MULTIPLE = 32  # pixels: the overlap of a spatial tile, a quarter, is whole latent pixels


def latent_frames(frames: int) -> int:
    """Latent frames t of T = 8(t-1)+1 frames; raises ValueError for any other T."""
    if frames < 1 or (frames - 1) % TEMPORAL:
        raise ValueError(f"a causal codec takes 8k+1 frames, not {frames}")
    return (frames - 1) // TEMPORAL + 1


def pixel_frames(latents: int) -> int:
    """Frames T = 8(t-1)+1 that t latent frames stand for."""
    if latents < 1:
        raise ValueError(f"a latent has at least one frame, not {latents}")
    return (latents - 1) * TEMPORAL + 1


def latent_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(t, h, w) of a clip in pixels; raises ValueError when the codec cannot take it."""
    if height < SPATIAL or width < SPATIAL or height % SPATIAL or width % SPATIAL:
        raise ValueError(f"height and width must be multiples of {SPATIAL}, not {height}x{width}")
    return latent_frames(frames), height // SPATIAL, width // SPATIAL
