"""What a metric sees of one video, and what it says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from eval.vocabulary import Facts

Frames = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Detail = float | str | None


@dataclass(frozen=True)
class Clip:
    """A decoded video, uint8 (T, H, W, 3) RGB, with its true rate, its prompt and what the prompt states."""

    frames: Frames
    fps: float
    prompt: str
    facts: Facts


@dataclass(frozen=True)
class Reading:
    """Value of a metric on one clip; None when the metric does not apply (a still has no motion, a prompt
    without colour words no colour to follow). `details` say how the value came about."""

    value: float | None
    details: Mapping[str, Detail] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric under its own name. `version` changes whenever its numbers do; `higher_is_better` None marks a
    monitor, which has no good direction; `chance` is the expected value when prompt and clip are unrelated."""

    name: str
    version: int
    title: str
    unit: str
    higher_is_better: bool | None
    description: str
    measure: Callable[[Clip], Reading]
    chance: float | None = None


def evenly(count: int, wanted: int) -> list[int]:
    """Indices of at most `wanted` frames, evenly spaced from the first to the last."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(Fraction(k * (count - 1), wanted - 1)) for k in range(wanted)]
