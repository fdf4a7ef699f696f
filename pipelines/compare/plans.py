"""A plan against an earlier pipeline run, or against what a channel's checkpoint was made with.

compare_plan(ledger, plan, nodes, "production").to_json()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from m4v.core.errors import InputError
from pipelines.compare.model import FieldChange, Jsonable
from pipelines.compare.runs import node_runs
from pipelines.keys import Change, changes, summarise
from pipelines.ledger import ArtifactRow, Ledger, PipelineRunRow, RunRow
from pipelines.lookup import known_record
from pipelines.plan import Plan, PlanStatus, PlanStep
from pipelines.spec import StageNode

PLAN_DIFF_SCHEMA = 1


class Standing(StrEnum):
    """How a stage stands to the reference. `unsettled`: nothing differs by itself, but stages before it run."""

    SAME = "same"
    DIFFERS = "differs"
    UNSETTLED = "unsettled"
    ONLY_NOW = "only now"
    ONLY_THERE = "only there"


@dataclass(frozen=True)
class PlanReference(Jsonable):
    """What the plan is held against. `artifact_id`: the channel's checkpoint."""

    kind: str  # pipeline run | channel | artifact
    name: str
    id: str
    recipe: str | None
    artifact_id: str | None = None


@dataclass(frozen=True)
class PlannedStage(Jsonable):
    """One stage. `changes` lead from the reference's run to what would be used now; `unsettled` names inputs that
    stages before it will make anew, with the stage that makes each."""

    node_id: str
    standing: Standing
    reason: str
    run_id: str | None
    status: str | None
    expectation: str | None
    changes: tuple[FieldChange, ...] = ()
    unsettled: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PlanDiff(Jsonable):
    recipe: str
    reference: PlanReference
    stages: tuple[PlannedStage, ...]

    def counts(self) -> dict[str, int]:
        return {str(s): sum(stage.standing is s for stage in self.stages) for s in Standing}

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": PLAN_DIFF_SCHEMA, **super().to_json(), "counts": self.counts()}


def compare_plan(ledger: Ledger, plan: Plan, nodes: Sequence[StageNode], reference: str) -> PlanDiff:
    """`reference`: name of a channel, or id (or unique prefix) of a pipeline run or of a checkpoint.

    Raises InputError for an unknown reference, or one of another sort.
    """
    named, runs = _reference(ledger, reference)
    by_id = {node.id: node for node in nodes}
    steps = {step.node_id: step for step in plan.steps}
    stages = [_stage(step, by_id[step.node_id], steps, runs.get(step.node_id)) for step in plan.steps]
    gone = [
        PlannedStage(node_id, Standing.ONLY_THERE, "the recipe has no such stage now", run.run_id, None, None)
        for node_id, run in runs.items()
        if node_id not in by_id
    ]
    return PlanDiff(plan.recipe, named, (*stages, *gone))


def _reference(ledger: Ledger, text: str) -> tuple[PlanReference, dict[str, RunRow]]:
    channel = ledger.channel(text)
    if channel is not None:
        reference = PlanReference("channel", text, text, None, channel.artifact_id)
        return reference, upstream_runs(ledger, channel.artifact_id)
    try:
        row = ledger.resolve(text)
    except InputError as error:
        names = ", ".join(sorted({entry.name for entry in ledger.channel_history()})) or "none yet"
        raise InputError(
            "there is neither a channel nor a run of this name", value=text,
            next_step=f"m4v runs list; channels: {names}",
        ) from error  # fmt: skip
    if isinstance(row, PipelineRunRow):
        identity = row.pipeline_run_id
        return PlanReference("pipeline run", identity, identity, row.recipe), node_runs(ledger, row)
    if isinstance(row, ArtifactRow):
        reference = PlanReference(
            "artifact", f"{row.kind} {row.artifact_id[:12]}", row.artifact_id, None, row.artifact_id
        )
        return reference, upstream_runs(ledger, row.artifact_id)
    raise InputError(
        "a plan is compared with a pipeline run or a channel", value=text, next_step="m4v runs diff compares stage runs"
    )


def upstream_runs(ledger: Ledger, artifact_id: str) -> dict[str, RunRow]:
    """The stage runs that an artifact was made by, however far up, by node id; of several runs that made the same
    bytes the newest."""
    graph = ledger.lineage_up(artifact_id)
    runs = sorted((ledger.run(run_id) for run_id in graph.runs), key=lambda run: run.committed_at)
    return {(ledger.attempt(run.attempt_id).node_id or run.stage): run for run in runs}


def _stage(step: PlanStep, node: StageNode, steps: Mapping[str, PlanStep], run: RunRow | None) -> PlannedStage:
    status, expectation = str(step.status), str(step.expectation)
    if run is None:
        return PlannedStage(step.node_id, Standing.ONLY_NOW, "not there", None, status, expectation)
    assert step.record is not None
    unsettled = tuple(
        (name, source)
        for name, (source, _) in sorted(node.inputs.items())
        if steps[source].status is not PlanStatus.HIT
    )
    open_inputs = {name for name, _ in unsettled}
    found = [c for c in changes(known_record(run), step.record) if not _is_open(c, open_inputs)]
    standing = Standing.DIFFERS if found else Standing.UNSETTLED if unsettled else Standing.SAME
    return PlannedStage(
        step.node_id, standing, _reason(found, unsettled), run.run_id, status, expectation,
        tuple(FieldChange.of(c) for c in found), unsettled,
    )  # fmt: skip


def _is_open(change: Change, inputs: set[str]) -> bool:
    """An input that is known only by what was made last time says nothing; one more or one less does."""
    return change.component == "input" and change.field in inputs and change.old is not None


def _reason(found: list[Change], unsettled: tuple[tuple[str, str], ...]) -> str:
    parts = [summarise(found)] if found else []
    if unsettled:
        names = ", ".join(dict.fromkeys(source for _, source in unsettled))
        parts.append(f"inputs come from stages that run: {names}")
    return "; ".join(parts) or "nothing differs"
