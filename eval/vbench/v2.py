"""VBench-2.0's totals over its dimensions. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.suites import Aggregate, DimensionResult
from eval.vbench.v2_prompts import V2_DIMENSIONS, rules


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
