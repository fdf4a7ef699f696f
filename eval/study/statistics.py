"""Agreement and strength from rankings: Kendall's W, Krippendorff's alpha, Bradley-Terry. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Half a win each way for every pair: a system that never lost has a finite strength.
PRIOR_WINS = 0.5
_STEPS, _CLOSE = 2000, 1e-10


def mid_ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, equal values sharing the mean of theirs."""
    found = np.asarray(values, dtype=np.float64)
    below = (found[None, :] < found[:, None]).sum(axis=1)
    equal = (found[None, :] == found[:, None]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2, dtype=np.float64)


def kendall_w(ranks: Floats) -> float | None:
    """Agreement of raters, `ranks` (raters, systems) being mid-ranks: 0 none, 1 full; corrected for ties. None for
    fewer than two raters or systems, or when all tie everything."""
    raters, systems = ranks.shape
    if raters < 2 or systems < 2:
        return None
    sums = ranks.sum(axis=0)
    spread = float(((sums - sums.mean()) ** 2).sum())
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(r, return_counts=True)[1] for r in ranks))
    most = raters**2 * (systems**3 - systems) - raters * ties
    return 12 * spread / most if most > 0 else None


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Ordinal alpha: `units` are the values that raters gave to one thing each; those with one value say nothing. None
    where nothing can be paired or every value is the same."""
    paired = [unit for unit in units if len(unit) > 1]
    values = sorted({v for unit in paired for v in unit})
    if len(values) < 2:
        return None
    place = {value: n for n, value in enumerate(values)}
    together = np.zeros((len(values), len(values)))
    for unit in paired:
        counts = np.bincount([place[v] for v in unit], minlength=len(values)).astype(np.float64)
        together += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = together.sum(axis=1)
    reached = np.cumsum(totals) - totals / 2  # middle of each value's own mass
    distance = (reached[:, None] - reached[None, :]) ** 2
    expected = float((np.outer(totals, totals) * distance).sum())
    return 1.0 - float((together * distance).sum()) * (float(totals.sum()) - 1) / expected


def bradley_terry(wins: Floats) -> Floats:
    """Log-abilities with mean 0 from `wins[..., i, j]` (i over j, ties half), by Hunter's MM; leading axes are
    problems of their own. `PRIOR_WINS` is added both ways to every pair."""
    size = wins.shape[-1]
    whole = wins + PRIOR_WINS * (1 - np.eye(size))
    won = whole.sum(axis=-1)
    met = whole + np.swapaxes(whole, -1, -2)
    ability = np.ones_like(won)
    for _ in range(_STEPS):
        new = won / (met / (ability[..., :, None] + ability[..., None, :])).sum(axis=-1)
        new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        change = float(np.abs(new / ability - 1).max())
        ability = new
        if change < _CLOSE:
            break
    return np.asarray(np.log(ability), dtype=np.float64)
