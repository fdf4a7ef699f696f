"""VBench-I2V's totals over its dimensions. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from eval.suites import Aggregate, DimensionResult
from eval.vbench.i2v_prompts import I2V_DIMENSIONS, rules


def figures(results: Sequence[DimensionResult]) -> Aggregate:
    """total, i2v and quality as fractions; None with what is missing. Rule and its source: `Rules.totals`. Terms are
    affine in the raw scores, and not clipped."""
    scores = {r.dimension: r.score for r in results if r.score is not None}
    groups: dict[str, float | None] = {group: _group(scores, group) for group in ("i2v", "quality")}
    known = [value for value in groups.values() if value is not None]
    total = math.fsum(known) / 2 if len(known) == 2 else None
    wanted = {"total": I2V_DIMENSIONS, "i2v": rules().names("i2v"), "quality": rules().names("quality")}
    missing = {name: tuple(p for p in parts if p not in scores) for name, parts in wanted.items()}
    return Aggregate(figures={"total": total, **groups}, missing={n: gone for n, gone in missing.items() if gone})


def _group(scores: Mapping[str, float], group: str) -> float | None:
    mine = [d for d in rules().dimensions if d.group == group]
    if any(d.name not in scores for d in mine):
        return None
    terms = [d.weight * (scores[d.name] - d.min) / (d.max - d.min) for d in mine]
    return math.fsum(terms) / math.fsum(d.weight for d in mine)
