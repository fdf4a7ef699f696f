"""The diagonal Gaussian that the encoder gives for each latent value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance, both (b, c, t, h, w) and un-normalised."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """From (b, 2c, t, h, w): means, then log-variances, which are clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Tensor) -> Tensor:
        """A draw, from N(0, 1) noise of the mean's shape."""
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Divergence from N(0, 1) in nats, (b, c): summed over time, height and width."""
        terms = self.mean**2 + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.sum(dim=(2, 3, 4))
