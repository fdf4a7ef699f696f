"""Prefect decides *when*: one parent flow per pipeline with one task per stage, and a thin flow per stage.

The ledger decides *whether* a stage runs and remembers *what* it made, so Prefect's caching and retries
are off. Everything a task does is `PipelineRun.execute`, the same call that runs without Prefect.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import allow_failure, opaque

from m4v.core.errors import ConfigError, ExitClass, GateRefused, M4VError, NeedsHuman
from m4v.core.stage import Progress
from pipelines.execute import NodeOutcome, NodeStatus, PipelineRun
from pipelines.session import Session, open_session
from pipelines.workspace import HOME_VARIABLE

PARALLEL_STAGES = 1  # stages use the whole machine; a cluster profile may raise this
CANCEL_GRACE_S = 25.0  # Prefect kills a cancelled flow after 30 s
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StageFailed(M4VError):
    """A stage ended without its outputs; the message carries the ledger's reason."""


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

    def complete(self) -> None:
        """The last report before the end may have come too late to be seen."""
        if self._id is not None and self._percent < 100.0:
            update_progress_artifact(self._id, 100.0)


def _artifact_key(*parts: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in a key."""
    return "-".join(parts).lower().replace(".", "-").replace("_", "-")


@task(name="stage", task_run_name="{node_id}", cache_policy=NO_CACHE, retries=0, persist_result=False)
def execute_stage(node_id: str, run: PipelineRun) -> State[None]:
    """Run or reuse one stage; the task's state says what became of it, in the ledger's words."""
    progress = _ProgressArtifact(node_id)
    outcome = run.execute(node_id, on_progress=progress)
    if outcome.status.has_outputs:
        progress.complete()
    _stage_table(outcome)
    return _state_of(outcome)


def _state_of(outcome: NodeOutcome) -> State[None]:
    """What reads from a failed stage still gets its turn, so that the ledger has a word on it too: hence no
    state here is of a kind that Prefect would pass on by itself."""
    said = outcome.error or outcome.reason
    if outcome.status is NodeStatus.HIT:
        return Completed(name="Cached", message=said, data=None)
    if outcome.status is NodeStatus.RAN:
        return Completed(message=said, data=None)
    name = "Failed" if outcome.status is NodeStatus.FAILED else str(outcome.status).capitalize()
    return Failed(name=name, message=said)


def _stage_table(outcome: NodeOutcome) -> None:
    rows = [{"output": n, "artifact": o.artifact_id, "place": o.uri} for n, o in outcome.outputs.items()]
    description = f"{outcome.status}: {outcome.reason}"
    create_table_artifact(
        rows or [{"output": "-"}], key=_artifact_key("stage", outcome.node_id), description=description
    )


def _runner() -> Any:
    return ThreadPoolTaskRunner(max_workers=PARALLEL_STAGES)


@flow(name="m4v-pipeline", validate_parameters=True, persist_result=False, retries=0, task_runner=_runner())
def pipeline(recipe: str, overrides: list[str] | None = None, until: str | None = None, home: str | None = None) -> Any:
    """Plan a recipe, then run every stage that is not a cache hit. Returns artifact ids by stage output.

    - recipe: name of a shipped recipe or path of a YAML file.
    - overrides: list of `a.b=c`.
    - until: last stage to run (all when empty).
    - home: directory of ledger, store and work files (default: M4V_HOME of the worker).
    """
    session = open_session(recipe, overrides or (), worker_home(home))
    run = session.new_run(until, trigger="prefect")
    try:
        _record_flow_run(session, run)
        return _body(session, run) or _artifact_ids(run)
    finally:
        run.finish()


@flow(name="m4v-stage", validate_parameters=True, persist_result=False, retries=0, task_runner=_runner())
def stage(recipe: str, stage_id: str, overrides: list[str] | None = None, home: str | None = None) -> Any:
    """Run one stage of a recipe whose inputs are already in the ledger."""
    session = open_session(recipe, overrides or (), worker_home(home))
    run = session.new_run(until=stage_id, trigger="prefect")
    try:
        _record_flow_run(session, run)
        for upstream in session.upstream_of(stage_id):
            if run.reuse(upstream) is None:
                raise NeedsHuman(
                    f"stage {stage_id} needs the output of {upstream}, which the ledger does not have",
                    next_step=f"m4v run {recipe} --until {stage_id}, which makes all of them",
                )
        _submit(run, [stage_id])
        return _verdict(run) or _artifact_ids(run)
    finally:
        run.finish()


def _record_flow_run(session: Session, run: PipelineRun) -> None:
    """So that the two can be held against each other when one of them ends without a word (`m4v reconcile`)."""
    if flow_run.id is not None:
        session.ledger.record_flow_run(run.id, str(flow_run.id))


def worker_home(home: str | None) -> str | None:
    """A worker runs flows in a temporary directory, where a home of no name would be lost with the run."""
    if home is None and not os.environ.get(HOME_VARIABLE):
        raise ConfigError(
            "the flow has no home directory",
            value=f"{HOME_VARIABLE} is not set for the worker",
            next_step="set it where the worker starts, or m4v deploy --run-home DIRECTORY",
        )
    return home


def run_in_process(session: Session, run: PipelineRun) -> None:
    """The parent flow for a run that the caller has begun and will judge: stages that fail are outcomes."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    @flow(name="m4v-pipeline", flow_run_name=f"{run.recipe}-{run.id}", validate_parameters=False, task_runner=_runner())
    def attached() -> Any:
        _record_flow_run(session, run)
        with _signals(handlers):
            return _body(session, run)

    # Prefect shows the flow as failed; the caller reads what became of each stage from the run.
    with suppress(StageFailed, GateRefused, CancelledRun):
        attached()


@contextmanager
def _signals(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """The caller's handlers, which drain; Prefect's end the flow where it stands."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _body(session: Session, run: PipelineRun) -> State[None] | None:
    publish_plan(session, run)
    _submit(run, [node.id for node in run.nodes])
    publish_summary(session, run)
    return _verdict(run)


def _verdict(run: PipelineRun) -> State[None] | None:
    """So that the flow's state in Prefect tells the truth: None when all is well, a cancelled state after a
    drain; raises StageFailed or GateRefused."""
    failed = [o for o in run.outcomes.values() if o.status is NodeStatus.FAILED]
    if failed:
        blocked = sum(o.status is NodeStatus.BLOCKED for o in run.outcomes.values())
        behind = f"; {blocked} stages behind it were not run" if blocked else ""
        raise StageFailed(f"stage {failed[0].node_id} failed: {failed[0].error}{behind}", where=f"run {run.id}")
    if run.exit_class is ExitClass.DRAINED:
        return Cancelled(message=f"drained; the same run resumes from the saved state (run {run.id})")
    if run.gate_refused:
        raise GateRefused("the evaluation gate refused the checkpoint", next_step=f"m4v runs show {run.id}")
    return None


def _artifact_ids(run: PipelineRun) -> dict[str, str]:
    return {f"{i}.{n}": out.artifact_id for i, o in run.outcomes.items() for n, out in o.outputs.items()}


def _submit(run: PipelineRun, node_ids: list[str]) -> None:
    """One task per stage, each after the stages it reads from; a failed one blocks only what reads from it.

    When Prefect ends the flow, running stages are drained and given time to save their state.
    """
    futures: dict[str, Any] = {}
    submit: Any = execute_stage.submit  # its overloads do not know `wait_for` beside typed arguments
    try:
        for node in run.nodes:
            if node.id in node_ids:
                waits: list[Any] = [allow_failure(futures[u]) for u in node.upstream if u in futures]
                futures[node.id] = submit(node.id, _opaque(run), wait_for=waits)
        for future in futures.values():
            future.wait()
    except BaseException:
        run.drain()
        deadline = time.monotonic() + CANCEL_GRACE_S
        for future in futures.values():
            future.wait(max(0.0, deadline - time.monotonic()))
        raise
    for node_id, future in futures.items():
        if node_id not in run.outcomes:
            future.result()  # raises what kept the stage from having an outcome: a fault of ours or the server's


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
