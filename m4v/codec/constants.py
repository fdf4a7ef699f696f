"""What is taken from a codec's latents before a model sees them: (latent - shift) / scale. Torch-free.

A number is for all channels, a tuple has one for each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Numbers = float | tuple[float, ...]


class Affine(NamedTuple):
    """`shift` and `scale` of some latent frames."""

    shift: Numbers
    scale: Numbers

    def to_json(self) -> dict[str, object]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._asdict().items()}

    @classmethod
    def from_json(cls, data: Any) -> Affine:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        return cls(_numbers(data["shift"]), _numbers(data["scale"]))


class LatentConstants(NamedTuple):
    """Of the first latent frame, which holds one picture, and of the others."""

    first: Affine
    others: Affine

    def to_json(self) -> dict[str, object]:
        """As `dataset.json` and every sample's `KEY.json` state it."""
        return {"first": self.first.to_json(), "others": self.others.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> LatentConstants:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError for anything else."""
        return cls(Affine.from_json(data["first"]), Affine.from_json(data["others"]))


# PyramidFlow's: the first latent frame holds one pixel frame and the others eight, so their statistics differ.
PYRAMID_CONSTANTS = LatentConstants(Affine(-0.04, 1.8726), Affine(-0.2343, 3.0986))


def _numbers(value: object) -> Numbers:
    if isinstance(value, list | tuple):
        return tuple(float(number) for number in value)
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{value!r} is no number")
