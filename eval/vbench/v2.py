"""VBench-2.0: what its dimensions ask of videos, and its totals over them. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from eval.suites import Aggregate, DimensionResult
from eval.vbench.v2_prompts import V2_DIMENSIONS, prompts_of, rules

INSTANCE = "instance_preservation"
TITLE = "VBench-2.0"


def problem_of_seconds(dimensions: Sequence[str], frames: int, fps: float) -> str | None:
    """Why videos of that length cannot be judged in all of `dimensions`; None where they can. Upstream looks at whole
    seconds but the last, and takes a video without any for perfect."""
    least = rules().instance_min_seconds
    if INSTANCE not in dimensions or frames / fps >= least:
        return None
    return f"{INSTANCE} of {TITLE} is for videos of {least:g} s and more, and gives shorter ones 1.0"


def problem_of_prompts(dimensions: Sequence[str], texts: Collection[str]) -> str | None:
    """Why videos of these prompts give no reading of any of `dimensions`; None where one does."""
    if any(each.prompt in texts for dimension in dimensions for each in prompts_of(dimension)):
        return None
    return f"no prompt is one of {TITLE}'s for {', '.join(dimensions)}"


def figures(results: Sequence[DimensionResult]) -> Aggregate:
    """The five groups and the total as fractions; None with what is missing. Rule and its source: `Rules.totals`."""
    scores = {r.dimension: r.score for r in results if r.score is not None}
    groups: dict[str, float | None] = {}
    for group, names in rules().groups.items():
        known = [scores[name] for name in names if name in scores]
        groups[group] = math.fsum(known) / len(names) if len(known) == len(names) else None
    whole = [value for value in groups.values() if value is not None]
    total = math.fsum(whole) / len(groups) if len(whole) == len(groups) else None
    wanted = {"total": V2_DIMENSIONS, **rules().groups}
    missing = {name: tuple(p for p in parts if p not in scores) for name, parts in wanted.items()}
    return Aggregate(figures={"total": total, **groups}, missing={n: gone for n, gone in missing.items() if gone})
