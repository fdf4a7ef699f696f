"""What every latent codec offers: the transform codec and the causal video VAE stand behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from m4v.codec.constants import LatentConstants

if TYPE_CHECKING:
    import torch

Frames = npt.NDArray[np.uint8]
Latent = npt.NDArray[np.float32]


class Moments(NamedTuple):
    """What a shard keeps of a clip: the mean latent and, where the config asks for it, the log-variance."""

    mean: Latent
    logvar: Latent | None


class LatentCodec(Protocol):
    """A causal codec of `time_stride` s: latents of the first sk+1 frames are the first k+1 latents of the whole clip
    (but for rounding, where a network computes them). Every codec behind this interface has that property.

    Latents are un-normalised: `m4v.flow` applies `constants`.
    """

    @property
    def time_stride(self) -> int:
        """Frames that share a latent frame after the first: 8, of Wan's VAE 4."""
        ...

    @property
    def constants(self) -> LatentConstants:
        """Shift and scale that models of these latents are trained with."""
        ...

    @property
    def digest(self) -> str:
        """Identity: equal digests give equal latents and frames."""
        ...

    def encode(self, frames: Frames) -> Latent:
        """Mean latent, float32 (16, t, h, w), of uint8 RGB frames (T, H, W, 3) with T = time_stride * (t-1) + 1.

        Raises ValueError for sizes it cannot take.
        """
        ...

    def encode_moments(self, frames: Frames) -> Moments:
        """`encode`, with the log-variance of the same shape if there is one to keep."""
        ...

    def decode(self, latent: Latent) -> Frames:
        """uint8 RGB frames (T, H, W, 3) of one latent (16, t, h, w)."""
        ...

    def decode_stream(self, latents: Iterable[Latent | torch.Tensor]) -> Iterator[Frames]:
        """Frames (n, H, W, 3) as soon as their latents, (16, 1, h, w) each and in order, have come.

        Joined they are `decode` of the joined latents. Memory does not grow with length.
        """
        ...

    def decode_tensor(self, latents: torch.Tensor, context: int = 0) -> torch.Tensor:
        """(b, 16, t, h, w) to (b, 3, T, H, W) in [0, 1], fp32 on the tensor's device, differentiable.

        With a context, only the frames of the latents after the first `context` come back, decoded as part of
        the whole but with gradients to these latents alone: the whole's gradients, for a part of the memory.
        The gradient goes straight through the final clamp, so saturated pixels keep theirs.
        """
        ...


@runtime_checkable
class DeviceCodec(Protocol):
    """What a codec with a network also offers: encoding of frames that lie on its device already."""

    @property
    def device(self) -> torch.device: ...

    def encode_uploaded(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`encode_moments` of a uint8 tensor (T, H, W, 3); the moments stay on the device, and on CUDA they may
        still be under way when this returns."""
        ...
