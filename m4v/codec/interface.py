"""What every latent codec offers; the causal video VAEs come behind the same interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Frames = npt.NDArray[np.uint8]
Latent = npt.NDArray[np.float32]


class LatentCodec(Protocol):
    """A causal codec: latents of the first 8k+1 frames are the first k+1 latents of the whole clip.

    Latents are un-normalised: `m4v.flow` applies the fixed constants of the model family.
    """

    @property
    def digest(self) -> str:
        """Identity: equal digests give equal latents and frames."""
        ...

    def encode(self, frames: Frames) -> Latent:
        """Mean latent, float32 (16, t, h, w), of uint8 RGB frames (T, H, W, 3) with T = 8(t-1)+1.

        Raises ValueError for sizes it cannot take.
        """
        ...

    def decode(self, latent: Latent) -> Frames:
        """uint8 RGB frames (T, H, W, 3) of one latent (16, t, h, w)."""
        ...

    def decode_tensor(self, latents: torch.Tensor) -> torch.Tensor:
        """(b, 16, t, h, w) to (b, 3, T, H, W) in [0, 1], on the tensor's device, differentiable.

        The gradient goes straight through the final clamp, so saturated pixels keep theirs.
        """
        ...
