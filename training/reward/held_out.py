"""How the scores of clips that a reward stage does not train on changed since its start model. Torch-free.

The clips, their noise and their timesteps are the same before and after, so that the change is paired clip by clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m4v.core.rng import generator

CLIPS = "probe_clips"  # how many of them were scored
MIN_CLIPS = 6  # rises of one sign alone say nothing of fewer: 2 x 0.5^5 is above 0.05
CONFIDENCE, RESAMPLES = 0.95, 10_000
_SEED = 0  # never the run's: the same scores give the same interval
_BEFORE, _AFTER, _LOW, _HIGH = "_at_start", "", "_rise_low", "_rise_high"
PREFIX = "probe_"


@dataclass(frozen=True)
class HeldOutScore:
    """Mean score of the held-out clips at the start and now, and the interval of its paired rise over clips."""

    name: str
    before: float
    after: float
    interval: tuple[float, float]
    clips: int

    @property
    def rise(self) -> float:
        return self.after - self.before

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out, on either side; of fewer clips than `MIN_CLIPS` never."""
        return self.clips >= MIN_CLIPS and (self.interval[0] > 0 or self.interval[1] < 0)


def held_out_levels(
    scorers: Sequence[str], before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> dict[str, object]:
    """Columns of a metrics row. `before` and `after`: scores (clips, scorers), NaN where a clip has none."""
    old, new = (np.asarray(scores, dtype=np.float64) for scores in (before, after))
    known = np.isfinite(old).all(axis=1) & np.isfinite(new).all(axis=1)
    old, new = old[known], new[known]
    found: dict[str, object] = {CLIPS: len(old)}
    if not len(old):
        return found
    drawn = generator(_SEED, "held_out").integers(0, len(old), size=(RESAMPLES, len(old)))
    tail = (1 - CONFIDENCE) / 2
    for number, name in enumerate(scorers):
        rises = new[:, number] - old[:, number]
        low, high = np.quantile(rises[drawn].mean(axis=1), [tail, 1 - tail])
        told = {_BEFORE: old[:, number].mean(), _AFTER: new[:, number].mean(), _LOW: low, _HIGH: high}
        found |= {f"{PREFIX}{name}{part}": float(value) for part, value in told.items()}
    return found


def held_out_scores(rows: Sequence[Mapping[str, object]]) -> tuple[HeldOutScore, ...]:
    """What the last row of `rows` that tells it says, a scorer each; () where no clips were scored."""
    row = next((row for row in reversed(rows) if row.get(CLIPS)), {})
    names = [key.removeprefix(PREFIX).removesuffix(_BEFORE) for key in row if key.endswith(_BEFORE)]

    def number(name: str, part: str) -> float:
        return float(str(row[f"{PREFIX}{name}{part}"]))

    return tuple(
        HeldOutScore(
            name, number(name, _BEFORE), number(name, _AFTER), (number(name, _LOW), number(name, _HIGH)),
            int(str(row[CLIPS])),
        )
        for name in names
    )  # fmt: skip
