"""What a suite needs on this machine, as tables: of `m4v evaluate run --check` and below a plan."""

from __future__ import annotations

from collections.abc import Mapping

from eval.suites import Requirement
from eval.vbench.config import TITLES
from eval.vbench.preflight import Preflight
from pipelines.cli.output import duration, print_rows, size
from pipelines.plan import hours_text
from pipelines.suite_cost import SuiteCost


def print_suite_costs(found: Mapping[str, SuiteCost]) -> None:
    """Videos that suites judge and what is known of the time."""
    if not found:
        return
    rows = [
        (node, cost.suite, cost.sampled_by, cost.videos, len(cost.readings), cost.total_readings,
         duration(cost.judge_seconds), None if cost.judge_gpu_hours is None else hours_text(cost.judge_gpu_hours),
         f"too few for {', '.join(cost.short)}" if cost.short else "")
        for node, cost in found.items()
    ]  # fmt: skip
    columns = ("stage", "suite", "samples of", "videos", "dimensions", "readings", "to judge", "GPU-hours", "says")
    print_rows(columns, rows, title="Videos to judge", text=("says",))
    for words in dict.fromkeys(w for each in found.values() for w in each.assumptions):
        print(f"not known: {words}")


def _size(need: Requirement) -> str:
    return f"about {size(need.approx_bytes)}" if need.approx_bytes is not None else size(need.size_bytes)


def print_suite_preflight(found: Preflight, suite: str = "vbench") -> None:
    """Dimensions with every reason, then every file and environment."""
    rows = [(d.dimension, d.environment, d.available, "; ".join(d.reasons)) for d in found.dimensions]
    print_rows(
        ("dimension", "environment", "here", "why not"),
        rows,
        title=f"{TITLES[suite]} on this machine",
        text=("why not",),
    )
    needs = [
        (r.name, r.problem or "here", _size(r), r.sha256, r.place, r.variable, r.source) for r in found.requirements
    ]
    print_rows(
        ("needs", "state", "size", "sha256", "place", "moved by", "from"), needs, text=("state", "place", "from")
    )
    for step in dict.fromkeys(r.next_step for r in found.requirements if r.next_step and r.kind == "environment"):
        print(f"next: {step}")
