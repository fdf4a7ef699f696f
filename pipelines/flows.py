"""Prefect decides *when*: one parent flow per pipeline with one task per stage, and a thin flow per stage.

The ledger decides *whether* a stage runs and remembers *what* it made, so Prefect's caching and retries
are off. Everything a task does is `PipelineRun.execute`, the same call that runs without Prefect.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import allow_failure, opaque

from m4v.core.errors import GateRefused, M4VError, NeedsHuman
from m4v.core.stage import Progress
from pipelines.execute import NodeOutcome, PipelineRun
from pipelines.session import Session, open_session

PARALLEL_STAGES = 1  # stages use the whole machine; a cluster profile may raise this


class StageFailed(M4VError):
    """A stage ended without its outputs; the task carries the ledger's reason."""


class _ProgressArtifact:
    """Shows a stage's progress in Prefect's pages; created on the first report that has a total."""

    def __init__(self, node_id: str) -> None:
        self._key = _artifact_key("progress", node_id)
        self._id: UUID | None = None
        self._percent = -1.0

    def __call__(self, progress: Progress) -> None:
        if not progress.total:
            return
        percent = round(100 * min(progress.done / progress.total, 1.0), 1)
        if percent == self._percent:
            return
        self._percent = percent
        note = f"{progress.done:g} of {progress.total:g} {progress.unit}"
        if self._id is None:
            self._id = cast(UUID, create_progress_artifact(percent, key=self._key, description=note))
        else:
            update_progress_artifact(self._id, percent, description=note)


def _artifact_key(*parts: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in a key."""
    return "-".join(parts).lower().replace(".", "-").replace("_", "-")


@task(name="stage", task_run_name="{node_id}", cache_policy=NO_CACHE, retries=0, persist_result=False)
def execute_stage(node_id: str, run: PipelineRun) -> NodeOutcome:
    """Run or reuse one stage; raises StageFailed when it left no outputs."""
    outcome = run.execute(node_id, on_progress=_ProgressArtifact(node_id))
    _stage_table(outcome)
    if not outcome.status.has_outputs:
        raise StageFailed(f"stage {node_id} {outcome.status}", value=outcome.error or outcome.reason)
    return outcome


def _stage_table(outcome: NodeOutcome) -> None:
    rows = [{"output": n, "artifact": o.artifact_id, "place": o.uri} for n, o in outcome.outputs.items()]
    description = f"{outcome.status}: {outcome.reason}"
    create_table_artifact(
        rows or [{"output": "-"}], key=_artifact_key("stage", outcome.node_id), description=description
    )


@flow(name="m4v-pipeline", validate_parameters=True, persist_result=False, retries=0)
def pipeline(
    recipe: str, overrides: list[str] | None = None, until: str | None = None, home: str | None = None
) -> dict[str, str]:
    """Plan a recipe, then run every stage that is not a cache hit. Returns artifact ids by stage output.

    - recipe: name of a shipped recipe or path of a YAML file.
    - overrides: list of `a.b=c`.
    - until: last stage to run (all when empty).
    - home: directory of ledger, store and work files (default: M4V_HOME of the worker).
    """
    return run_session(open_session(recipe, overrides or (), home), until)


@flow(name="m4v-stage", validate_parameters=True, persist_result=False, retries=0)
def stage(recipe: str, stage_id: str, overrides: list[str] | None = None, home: str | None = None) -> dict[str, str]:
    """Run one stage of a recipe whose inputs are already in the ledger."""
    session = open_session(recipe, overrides or (), home)
    run = session.new_run(until=stage_id, trigger="prefect")
    try:
        for upstream in session.upstream_of(stage_id):
            if run.reuse(upstream) is None:
                raise NeedsHuman(
                    f"stage {stage_id} needs the output of {upstream}, which the ledger does not have",
                    next_step=f"m4v run {recipe} --until {upstream}",
                )
        outcome = execute_stage(stage_id, _opaque(run))
    finally:
        run.finish()
    return {name: output.artifact_id for name, output in outcome.outputs.items()}


def run_session(session: Session, until: str | None = None) -> dict[str, str]:
    """The body of the parent flow for a deployment: a pipeline run of its own."""
    run = session.new_run(until, trigger="prefect")
    try:
        _body(session, run)
    finally:
        run.finish()
    return {f"{i}.{n}": out.artifact_id for i, o in run.outcomes.items() for n, out in o.outputs.items()}


def run_in_process(session: Session, run: PipelineRun) -> None:
    """The parent flow for a run that the caller has begun and will judge: stages that fail are outcomes."""

    @flow(name="m4v-pipeline", flow_run_name=f"{run.recipe}-{run.id}", validate_parameters=False)
    def attached() -> None:
        _body(session, run)

    runner: Any = ThreadPoolTaskRunner(max_workers=PARALLEL_STAGES)
    # Prefect shows the flow as failed; the caller reads what became of each stage from the run.
    with suppress(StageFailed, GateRefused):
        attached.with_options(task_runner=runner)()


def _body(session: Session, run: PipelineRun) -> None:
    """Raises StageFailed or GateRefused, so that the flow's state in Prefect tells the truth."""
    publish_plan(session, run)
    submit_stages(run)
    publish_summary(session, run)
    failed = [o for o in run.outcomes.values() if not o.status.has_outputs]
    if failed:
        raise StageFailed(f"{len(failed)} stages left no outputs", value=failed[0].node_id, where=f"run {run.id}")
    if run.gate_refused:
        raise GateRefused("the evaluation gate refused the checkpoint", next_step=f"m4v runs show {run.id}")


def submit_stages(run: PipelineRun) -> None:
    """One task per stage, each after the stages it reads from; a failed one blocks only what reads from it."""
    futures: dict[str, Any] = {}
    submit: Any = execute_stage.submit  # its overloads do not know `wait_for` beside typed arguments
    for node in run.nodes:
        waits: list[Any] = [allow_failure(futures[u]) for u in node.upstream]
        futures[node.id] = submit(node.id, _opaque(run), wait_for=waits)
    for future in futures.values():
        future.wait()


def _opaque(run: PipelineRun) -> PipelineRun:
    """Passed to a task as it is: Prefect would otherwise search it for futures."""
    return cast(PipelineRun, opaque(run))


def publish_plan(session: Session, run: PipelineRun) -> None:
    markdown = session.plan(run.nodes[-1].id if run.is_partial else None).to_markdown()
    create_markdown_artifact(markdown, key="plan", description=f"Plan of {session.recipe.name}")


def publish_summary(session: Session, run: PipelineRun) -> None:
    rows = [
        {
            "stage": o.node_id,
            "status": str(o.status),
            "run": o.run_id or "",
            "seconds": round(o.seconds, 1),
            "reason": o.reason,
        }
        for o in run.outcomes.values()
    ]
    create_table_artifact(rows or [{"stage": "-"}], key="summary", description=f"Stages of {session.recipe.name}")
