"""What differs between a plan and an earlier run, as a table of the terminal."""

from __future__ import annotations

from pipelines.cli.output import print_rows, short
from pipelines.compare.plans import PlanDiff


def print_plan_diff(found: PlanDiff) -> None:
    reference = found.reference
    checkpoint = f" (checkpoint {short(reference.artifact_id)})" if reference.kind == "channel" else ""
    print_rows(
        ("stage", "now", "standing", "then", "what differs"),
        [(s.node_id, s.status, s.standing, s.run_id, s.reason) for s in found.stages],
        title=f"Plan of {found.recipe} against {reference.kind} {reference.name}{checkpoint}",
        text=("what differs",),
    )
    counts = ", ".join(f"{count} {name}" for name, count in found.counts().items() if count)
    print(f"{counts}; m4v plan {found.recipe} says what would run and why")
