"""VBench's figures over dimensions: totals of the full suite, and the fast protocol's averages. Torch-free.

The fast protocol (paper 4.1, C.1) takes 50 prompts and seven metrics; dynamic degree stands beside them, since a
frozen picture scores near 1 on four of the seven. `avg4` is what the paper's tables 3 and 4 print as average,
`avg7` what its appendix C.1 says that it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from eval.suites import Aggregate, DimensionResult
from eval.vbench.constants import DIMENSIONS, constants
from eval.vbench.totals import totals

AVG4 = ("subject_consistency", "aesthetic_quality", "imaging_quality", "overall_consistency")
AVG7 = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "aesthetic_quality",
    "imaging_quality", "overall_consistency",
)  # fmt: skip
FAST_DIMENSIONS = (*AVG7, "dynamic_degree")


def standard_figures(results: Sequence[DimensionResult]) -> Aggregate:
    """total, quality, semantic as fractions; None with what is missing."""
    scores = scores_of(results)
    wanted = {"total": DIMENSIONS, "quality": constants().names("quality"), "semantic": constants().names("semantic")}
    found = totals(scores, "fraction") if scores else None
    figures = {name: getattr(found, name, None) for name in wanted}
    missing = {name: tuple(p for p in parts if p not in scores) for name, parts in wanted.items()}
    return Aggregate(figures=figures, missing={name: gone for name, gone in missing.items() if gone})


def fast_figures(results: Sequence[DimensionResult]) -> Aggregate:
    """avg4 and avg7 as fractions: means of raw scores, as the paper has them."""
    scores = scores_of(results)
    wanted = {"avg4": AVG4, "avg7": AVG7}
    figures = {name: _mean(scores, parts) for name, parts in wanted.items()}
    missing = {name: tuple(p for p in parts if p not in scores) for name, parts in wanted.items()}
    return Aggregate(figures=figures, missing={name: gone for name, gone in missing.items() if gone})


def scores_of(results: Sequence[DimensionResult]) -> dict[str, float]:
    """Raw scores of what was measured, as fractions."""
    return {r.dimension: r.score for r in results if r.score is not None}


def _mean(scores: Mapping[str, float], parts: Sequence[str]) -> float | None:
    if any(part not in scores for part in parts):
        return None
    return math.fsum(scores[part] for part in parts) / len(parts)
