"""Pixels and frames that a latent stands for, by family. Needs nothing, so that any config may name it."""

from __future__ import annotations

from typing import Final

SPATIAL = 8  # pixels a latent pixel, each side
TEMPORAL: Final = 8  # frames a latent frame after the first: the pyramid VAE and the transform codec
WAN_TEMPORAL: Final = 4  # of Wan's VAE
PATCH = 2  # latent pixels of a token's side
