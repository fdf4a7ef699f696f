"""Pipeline runs: one per `m4v run` of a recipe, and what became of each of its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from m4v.core.canonical import digest_json, plain_json
from m4v.core.errors import InputError
from pipelines.access import user_name
from pipelines.ledger import schema
from pipelines.ledger.chain import PROJECTIONS, record_event, row_digest
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.process import host_name, process_token
from pipelines.ledger.records import NodeOutcome, Status
from pipelines.ledger.types import utc_now

FLOW_RUN = "pipeline.flow-run"


class FlowRunRow(NamedTuple):
    """A flow run of Prefect and the pipeline run that it was."""

    flow_run_id: str
    pipeline_run_id: str


class PipelineOps:
    """The pipeline-run verbs of a Ledger."""

    _db: Database

    def begin_pipeline_run(
        self,
        recipe: str,
        resolved: Mapping[str, Any],
        *,
        trigger: str = "cli",
        environment: Mapping[str, Any] | None = None,
        by: str | None = None,
    ) -> str:
        """Record the start of a recipe; `resolved` is the whole resolved recipe as JSON, `environment` the code and
        machine it starts with (`begun_environment` gives it back), `by` who starts it: else whoever this process acts
        for. Raises ConfigError when M4V_ACTOR is no name."""
        starter = by or user_name()
        row = schema.PipelineRun(
            pipeline_run_id=new_id(),
            recipe=recipe,
            recipe_digest=digest_json(dict(resolved)),
            resolved=dict(resolved),
            trigger=trigger,
            host=host_name(),
            process=process_token(),
            started_at=utc_now(),
            status=Status.RUNNING,
            message="",
        )
        with self._db.write() as session:
            session.add(row)
            begun: dict[str, Any] = {"row": pipeline_digest(row), "recipe": recipe, "recipe_digest": row.recipe_digest}
            begun["by"] = starter
            if environment is not None:
                begun["environment"] = plain_json(environment)
            record_event(session, "pipeline.begun", row.pipeline_run_id, begun)
            return row.pipeline_run_id

    def begun_environment(self, pipeline_run_id: str) -> dict[str, Any]:
        """What `begin_pipeline_run` was told of code and machine; empty for a run that was told nothing."""
        return dict(self._begun(pipeline_run_id).get("environment", {}))

    def begun_by(self, pipeline_run_id: str) -> str | None:
        """Who started a pipeline run; None for one that an earlier release recorded."""
        return self._begun(pipeline_run_id).get("by")

    def _begun(self, pipeline_run_id: str) -> dict[str, Any]:
        event = schema.Event
        query = select(event).where(event.subject == pipeline_run_id, event.kind == "pipeline.begun")
        with self._db.read() as session:
            found = session.scalars(query.order_by(event.seq).limit(1)).first()
            return dict(found.payload) if found is not None else {}

    def record_node(
        self,
        pipeline_run_id: str,
        node_id: str,
        *,
        stage: str,
        how: NodeOutcome | str,
        reason: str,
        stage_key: str | None = None,
        run_id: str | None = None,
        attempt_id: str | None = None,
    ) -> None:
        """Say what became of a node (again: the last word stands). A `hit` also leaves a reuse edge."""
        outcome = NodeOutcome(how)
        if outcome in (NodeOutcome.RAN, NodeOutcome.HIT) and run_id is None:
            raise InputError(f"a node that {outcome} names its run", value=node_id, where=pipeline_run_id)
        payload: dict[str, Any] = {
            "node_id": node_id, "stage": stage, "stage_key": stage_key, "run_id": run_id,
            "attempt_id": attempt_id, "how": outcome, "reason": reason,
        }  # fmt: skip
        with self._db.write() as session:
            _pipeline_run(session, pipeline_run_id)
            if run_id is not None and session.get(schema.StageRun, run_id) is None:
                raise InputError("ledger has no such run", value=run_id, where=f"node {node_id}")
            if outcome is NodeOutcome.HIT and run_id is not None:
                payload["reuse"] = _add_reuse(session, pipeline_run_id, node_id, run_id, reason)
            record_event(session, "pipeline.node", pipeline_run_id, payload)

    def finish_pipeline_run(self, pipeline_run_id: str, exit_class: int, message: str = "") -> None:
        """Record the end of a pipeline run; the first verdict stands."""
        with self._db.write() as session:
            if _pipeline_run(session, pipeline_run_id).status == Status.RUNNING:
                verdict = {"status": Status.of_exit(exit_class), "exit_class": int(exit_class), "message": message}
                record_event(session, "pipeline.finished", pipeline_run_id, verdict)

    def runner_of(self, pipeline_run_id: str) -> str:
        """Token of the process that conducts a pipeline run (`pipelines.ledger.process`)."""
        with self._db.read() as session:
            return _pipeline_run(session, pipeline_run_id).process

    def record_flow_run(self, pipeline_run_id: str, flow_run_id: str) -> None:
        """Say which of Prefect's flow runs a pipeline run is."""
        with self._db.write() as session:
            _pipeline_run(session, pipeline_run_id)
            record_event(session, FLOW_RUN, pipeline_run_id, {"flow_run_id": flow_run_id})

    def flow_runs(self, days: float) -> list[FlowRunRow]:
        """Flow runs of pipeline runs begun in the last `days`, oldest first; a retried one has a row for each run."""
        with self._db.read() as session:
            since = self._db.now(session) - timedelta(days=days)
            run = schema.PipelineRun
            query = select(schema.Event).join(run, run.pipeline_run_id == schema.Event.subject)
            query = query.where(run.started_at >= since, schema.Event.kind == FLOW_RUN)
            return [
                FlowRunRow(str(event.payload["flow_run_id"]), event.subject)
                for event in session.scalars(query.order_by(schema.Event.seq))
            ]

    def record_cancelled(self, pipeline_run_id: str, *, by: str, reason: str, killed: int, status: Status) -> None:
        """Record that a cancelled run is confirmed gone, and how many of its processes had to be killed."""
        with self._db.write() as session:
            _pipeline_run(session, pipeline_run_id)
            facts = {"by": by, "reason": reason, "killed": killed, "status": status}
            record_event(session, "pipeline.cancelled", pipeline_run_id, facts)


def pipeline_digest(row: schema.PipelineRun) -> str:
    return row_digest(row, *PROJECTIONS[schema.PipelineRun])


def _pipeline_run(session: Session, pipeline_run_id: str) -> schema.PipelineRun:
    row = session.get(schema.PipelineRun, pipeline_run_id)
    if row is None:
        raise InputError("ledger has no such pipeline run", value=pipeline_run_id, next_step="m4v runs list")
    return row


def _add_reuse(session: Session, pipeline_run_id: str, node_id: str, run_id: str, reason: str) -> dict[str, str]:
    row = schema.Reuse(
        reuse_id=new_id(),
        pipeline_run_id=pipeline_run_id,
        node_id=node_id,
        run_id=run_id,
        reason=reason,
        recorded_at=utc_now(),
    )
    session.add(row)
    return {"reuse_id": row.reuse_id, "row": row_digest(row)}
