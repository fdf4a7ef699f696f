"""The decision which clips stay: rules on stored scores in a fixed order, then duplicates among what is left.

It sees columns only, so that the curate stage and a what-if over a published clip table run the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataprep.curate_config import DedupConfig, FilterConfig
from dataprep.dedup import Fingerprints, find_duplicates
from dataprep.quarantine import Reason


class Rule(NamedTuple):
    """Drops as `name` when the measured value is below (`min`) or above (`max`) the threshold."""

    name: str
    threshold: str  # field of FilterConfig
    value: str  # a score, or `frames` or `side`
    bound: Literal["min", "max"]
    applies_to_drawn: bool = False


RULES = (
    Rule("too_short", "min_frames", "frames", "min", applies_to_drawn=True),
    Rule("too_small", "min_side", "side", "min", applies_to_drawn=True),
    Rule("interlaced", "max_interlaced", "interlaced", "max"),
    Rule("frame_gap", "max_gap", "gap", "max"),
    Rule("black", "max_black", "black", "max"),
    Rule("overexposed", "max_overexposed", "overexposed", "max"),
    Rule("letterbox", "max_letterbox", "letterbox", "max"),
    Rule("frozen", "max_frozen", "frozen", "max"),
    Rule("static", "min_motion", "motion", "min"),
    Rule("fast_motion", "max_motion", "motion", "max"),
    Rule("jittery", "max_jitter", "jitter", "max"),
    Rule("blurry", "min_sharpness", "sharpness", "min"),
    Rule("blocky", "max_blockiness", "blockiness", "max"),
    Rule("flashing", "max_flash", "flash", "max"),
    Rule("text", "max_text", "text", "max"),
    Rule("nsfw", "max_nsfw", "nsfw", "max"),
    Rule("low_quality", "max_brisque", "brisque", "max"),
)


@dataclass(frozen=True)
class Candidates:
    """The clips to decide on, by column, in any order.

    `values`: what rules look at (`Rule.value`), NaN where nothing was measured. `captioned`: a clip without a
    caption is out before any rule. `fingerprints` gives what dedup knows of the clips at some places, in their order.
    """

    clip_ids: Sequence[str]
    values: Mapping[str, NDArray[np.float64]]
    drawn: NDArray[np.bool_]
    captioned: NDArray[np.bool_]
    fingerprints: Callable[[NDArray[np.int64]], Fingerprints]


class Step(NamedTuple):
    """One step of the decision: how many clips entered, and how many left by which reason."""

    name: str
    entered: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Decision:
    """`drop_rules` and `duplicate_of` by the place of the clip among the candidates; None: kept, no copy."""

    drop_rules: list[str | None]
    duplicate_of: list[str | None]
    steps: tuple[Step, ...]


def breaks(candidates: Candidates, rule: Rule, config: FilterConfig) -> NDArray[np.bool_]:
    """(clips,) whether each clip breaks the rule, whatever other rules say. What was not measured breaks none."""
    threshold = getattr(config, rule.threshold)
    if threshold is None:
        return np.zeros(len(candidates.drawn), dtype=np.bool_)
    values = candidates.values[rule.value]
    found = values < threshold if rule.bound == "min" else values > threshold  # False for NaN
    return np.asarray(found if rule.applies_to_drawn else found & ~candidates.drawn, dtype=np.bool_)


def decide(candidates: Candidates, filters: FilterConfig, dedup: DedupConfig) -> Decision:
    """Drop clips without a caption, then by the first rule that each breaks, then copies among the rest: of those
    the larger picture stays, then the longer clip, then the earlier input."""
    rules = np.full(len(candidates.clip_ids), None, dtype=object)
    rules[~candidates.captioned] = str(Reason.MISSING_CAPTION)
    steps = []
    if bare := int(np.count_nonzero(~candidates.captioned)):
        steps.append(Step("captions", len(rules), {str(Reason.MISSING_CAPTION): bare}))
    open_ = candidates.captioned.copy()
    entered, dropped = int(np.count_nonzero(open_)), {}
    for rule in RULES:
        hit = open_ & breaks(candidates, rule, filters)
        if count := int(np.count_nonzero(hit)):
            rules[hit], dropped[rule.name] = rule.name, count
            open_ &= ~hit
    steps.append(Step("filters", entered, dropped))
    copies, duplicate_of = _drop_copies(candidates, np.flatnonzero(open_), dedup, rules)
    steps.append(Step("dedup", int(np.count_nonzero(open_)), copies))
    return Decision(rules.tolist(), duplicate_of, tuple(steps))


def _drop_copies(
    candidates: Candidates, places: NDArray[np.int64], config: DedupConfig, rules: NDArray[np.object_]
) -> tuple[dict[str, int], list[str | None]]:
    """Set `rules` of the copies among the clips at `places`; counts by rule, and what each clip is a copy of."""
    duplicate_of: list[str | None] = [None] * len(rules)
    copies = find_duplicates(candidates.fingerprints(places), config)
    rules[places[copies.rows]] = copies.rules
    for place, stays in zip(places[copies.rows].tolist(), places[copies.of].tolist(), strict=True):
        duplicate_of[place] = candidates.clip_ids[stays]
    return dict(sorted(Counter(copies.rules.tolist()).items())), duplicate_of
