"""The cyclic template: which stream every pack of a period takes, and the units of its columns. Torch-free.

A pack is one forward pass: `len(columns) * batch` samples of one stream, column c at pyramid stage `columns[c]`
with `unit` latent frames (the last one noisy). Packs are equal in tokens as far as the shapes allow. Without
columns there is no pyramid, and a sample is its whole clip, all noisy.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

from m4v.core.errors import ConfigError

MAX_PERIOD_PACKS = 1 << 16
HIGH = 2  # highest pyramid stage
WHOLE = 3  # in place of a stage: all frames of the clip at full size, noisy together
PACKS_PER_BUCKET = 4  # resolution of bucket shares inside a mixture entry


class Column(NamedTuple):
    """Pyramid stage (0 low, 1 mid, 2 high, or `WHOLE`) and number of latent frames of one column."""

    stage: int
    unit: int


def stage_tokens(stage: int, height: int, width: int) -> int:
    """2x2 patches of one latent frame (height x width at full size) at a pyramid stage."""
    side = 1 << (2 - stage)
    return (height // (2 * side)) * (width // (2 * side))


def column_tokens(column: Column, height: int, width: int) -> int:
    """Visual tokens of a column: the noisy frame, one history frame of its own size, one of half of it, the
    rest at the lowest size (temporal pyramid, PyramidFlow section 3.4)."""
    stage, unit = column
    if stage == WHOLE:
        return unit * stage_tokens(HIGH, height, width)
    tokens = stage_tokens(stage, height, width)
    if unit >= 2:
        tokens += stage_tokens(stage, height, width)
    if unit >= 3:
        tokens += stage_tokens(max(stage - 1, 0), height, width)
    return tokens + max(unit - 3, 0) * stage_tokens(0, height, width)


def unit_cycle(
    stages: Sequence[int], units: int, height: int, width: int, high_units: int = 0
) -> tuple[tuple[Column, ...], ...]:
    """`units` packs in which every column meets every unit once, balanced in tokens.

    Columns are placed from the costliest spread to the smallest; each gives its cheapest unit to the pack
    that is fullest so far. With `high_units`, columns of the high stage go round the last so many units instead.
    Without columns it is one pack of the whole clip.
    """
    if not stages:
        return ((Column(WHOLE, units),),)
    last = min(high_units, units) or units

    def cost(stage: int, unit: int) -> int:
        return column_tokens(Column(stage, unit), height, width)

    sums = [0] * units
    chosen: list[list[Column | None]] = [[None] * len(stages) for _ in range(units)]
    for place in sorted(range(len(stages)), key=lambda p: (-cost(stages[p], units) + cost(stages[p], 1), p)):
        stage = stages[place]
        first = units - last if stage == HIGH else 0
        met = (first + 1 + i % (units - first) for i in range(units))
        ascending = sorted(met, key=lambda u: (cost(stage, u), u))
        fullest = sorted(range(units), key=lambda p: (-sums[p], p))
        for pack, unit in zip(fullest, ascending, strict=True):
            chosen[pack][place] = Column(stage, unit)
            sums[pack] += cost(stage, unit)
    return tuple(tuple(c for c in pack if c is not None) for pack in chosen)


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Integers that sum to `total`, proportional to `shares` by largest remainder, none below one."""
    if total < len(shares):
        raise ValueError(f"{total} packs cannot serve {len(shares)} streams")
    spare, whole = total - len(shares), sum(shares, Fraction(0))
    # One pack each is given first; the rest follows what each share still lacks of its quota.
    lacking = [max(share / whole * total - 1, Fraction(0)) for share in shares]
    lack = sum(lacking, Fraction(0))
    quota = [x * spare / lack if lack else Fraction(0) for x in lacking]
    floors = [int(q) for q in quota]
    order = sorted(range(len(shares)), key=lambda i: (floors[i] - quota[i], i))
    for i in order[: spare - sum(floors)]:
        floors[i] += 1
    return [1 + f for f in floors]


def period_packs(weights: Sequence[int], buckets: Sequence[int], unit_packs: int) -> int:
    """Smallest number of packs that is a multiple of `unit_packs`, divides exactly by the weights and gives
    every bucket of every entry some room; raises ConfigError when the weights need an endless period."""
    common = gcd(*weights)
    base = sum(w // common for w in weights)
    packs = lcm(base, unit_packs)
    needed = max(-(-PACKS_PER_BUCKET * b * base // (w // common)) for w, b in zip(weights, buckets, strict=True))
    packs *= max(1, -(-needed // packs))
    if packs > MAX_PERIOD_PACKS:
        raise ConfigError(
            "mixture weights need too long a period",
            value=list(weights),
            where="order.mixture",
            next_step="use small integers such as 1, 2, 5",
        )
    return packs


def interleave(counts: Sequence[int]) -> list[int]:
    """Indices of streams, each as often as its count, spread evenly: the k-th of n picks is due at (k+1/2)/n."""
    total = sum(counts)
    due = [((2 * k + 1) * total // n, i, k) for i, n in enumerate(counts) for k in range(n)]
    return [i for _, i, _ in sorted(due)]
