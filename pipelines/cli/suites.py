"""What a suite needs on this machine, as tables: of `m4v evaluate run --check` and below a plan."""

from __future__ import annotations

from eval.vbench.preflight import Preflight
from pipelines.cli.output import print_rows, size


def print_suite_preflight(found: Preflight) -> None:
    """Dimensions with every reason, then every file and environment."""
    rows = [(d.dimension, d.environment, d.available, "; ".join(d.reasons)) for d in found.dimensions]
    print_rows(("dimension", "environment", "here", "why not"), rows, title="VBench on this machine", text=("why not",))
    needs = [
        (r.name, r.problem or "here", size(r.size_bytes), r.sha256, r.place, r.variable, r.source)
        for r in found.requirements
    ]
    print_rows(
        ("needs", "state", "size", "sha256", "place", "moved by", "from"), needs, text=("state", "place", "from")
    )
    for step in dict.fromkeys(r.next_step for r in found.requirements if r.next_step and r.kind == "environment"):
        print(f"next: {step}")
