"""Are imported latents what is claimed of them? A few clips are encoded again and compared; all are held to a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataprep.media.decode import open_reader
from dataprep.media.geometry import cover
from dataprep.media.reader import sound
from m4v.codec.constants import LatentConstants
from m4v.codec.interface import LatentCodec
from m4v.codec.shape import SPATIAL
from m4v.core.errors import DataIntegrityError
from m4v.flow.latents import normalise
from m4v.text.interface import TextEncoder, TextFeatures


def frames_to_check(codec: LatentCodec) -> int:
    """Two latents: a causal codec makes them of these frames alone."""
    return 1 + codec.time_stride


@dataclass
class Scale:
    """Standard deviation of many latents after normalisation by `constants`."""

    constants: LatentConstants
    numbers: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, latent: Tensor) -> None:
        values = normalise(latent[None], self.constants).to(torch.float64)
        self.numbers += values.numel()
        self.total += float(values.sum())
        self.squares += float((values**2).sum())

    @property
    def deviation(self) -> float:
        mean = self.total / self.numbers
        return math.sqrt(max(0.0, self.squares / self.numbers - mean**2))

    def check(self, bounds: tuple[float, float]) -> None:
        """Raises DataIntegrityError outside the bounds."""
        if not bounds[0] <= self.deviation <= bounds[1]:
            raise DataIntegrityError(
                f"latents have a standard deviation of {self.deviation:.3g} once normalised, "
                f"where {bounds[0]:g} to {bounds[1]:g} are expected",
                where="import",
                next_step="import un-normalised latents of the codec that the config names, or set `scale`",
            )


def latent_error(codec: LatentCodec, path: Path, frames: list[int], stored: Tensor) -> float:
    """rms difference between what the codec makes of the first source frames of a clip and its stored latent
    (16, t, h, w), over the rms of that, both normalised. Raises ItemError when the media cannot be decoded."""
    _, t, h, w = stored.shape
    wanted = frames[: 1 if t == 1 else frames_to_check(codec)]
    pictures = [picture for _, picture in sound(open_reader(path, "pyav-once").shown(wanted))]
    covered = np.stack([cover(picture, SPATIAL * h, SPATIAL * w) for picture in pictures])
    made = normalise(torch.from_numpy(codec.encode(covered))[None], codec.constants)
    held = normalise(stored[None], codec.constants)[:, :, : made.shape[2]]
    return _error(made, held)


def text_error(encoder: TextEncoder, caption: str, stored: TextFeatures) -> float:
    """The same of a caption's saved features. Raises DataIntegrityError when the sizes differ."""
    made = encoder.encode((caption,))
    if made.embedding.shape != stored.embedding.shape or made.pooled.shape != stored.pooled.shape:
        raise DataIntegrityError(
            "saved text features are of another size than the text encoder's",
            value=[list(stored.embedding.shape), list(stored.pooled.shape)], where="import",
            next_step="name the encoder that made them, or set texts=encode",
        )  # fmt: skip
    real = made.mask[..., None]
    return max(
        _error(torch.where(real, made.embedding, 0.0), torch.where(real, stored.embedding, 0.0)),
        _error(made.pooled, stored.pooled),
    )


def _error(made: Tensor, held: Tensor) -> float:
    size = float(held.double().pow(2).mean().sqrt())
    return float((made.double() - held.double()).pow(2).mean().sqrt()) / max(size, 1e-12)


def check_error(what: str, name: str, error: float, limit: float) -> None:
    """Raises DataIntegrityError for an error past the limit: digests of other encoders are never mixed."""
    if not error <= limit:
        raise DataIntegrityError(
            f"{what} encoded again differs by {error:.0%} from what is stored: another encoder made it", value=name,
            where="import", next_step="name the encoder that made it; max_error says how much may differ",
        )  # fmt: skip
