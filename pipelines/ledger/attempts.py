"""Attempts: every launch of a stage is recorded before it starts, and its end exactly once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from m4v.core.canonical import plain_json
from m4v.core.errors import ExitClass, InputError
from m4v.core.stage import InputRef, Progress
from pipelines.ledger import schema
from pipelines.ledger.chain import PROJECTIONS, record_event, row_digest
from pipelines.ledger.claims import checked, is_abandoned
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.process import host_name, is_dead
from pipelines.ledger.records import Claim, Status
from pipelines.ledger.supervision import SupervisionOps
from pipelines.ledger.types import utc_now
from pipelines.ledger.withdrawn import refuse_withdrawn

_LOST_MESSAGE = "its process ended without a word"


class AttemptOps(SupervisionOps):
    """The attempt verbs of a Ledger."""

    _db: Database

    def begin_attempt(
        self,
        claim: Claim,
        *,
        stage: str,
        work_dir: str,
        log_path: str,
        launcher: str = "local",
        host: str | None = None,
        pipeline_run_id: str | None = None,
        node_id: str | None = None,
        attempt_id: str | None = None,
        inputs: Iterable[InputRef] = (),
        admits: Collection[str] = (),
    ) -> str:
        """Record a launch that is about to happen; raises ClaimLost unless `claim` is live, Withdrawn for an input
        that a takedown took out of use (those in `admits` are let in: a takedown's own work).

        Earlier attempts of the key that never reported an end are closed as lost: holding the claim
        proves that they are. `attempt_id` (from `new_id`) lets a caller name its work directory first.
        """
        with self._db.write() as session:
            checked(session, claim, lock=True)
            given = tuple(inputs)
            refuse_withdrawn(session, [(i.artifact_id, i.kind) for i in given if i.artifact_id not in admits], stage)
            row = schema.Attempt(
                attempt_id=attempt_id or new_id(), stage_key=claim.stage_key, stage=stage,
                number=_close_earlier(session, claim.stage_key) + 1, fence=claim.fence, launcher=launcher,
                host=host or host_name(), work_dir=work_dir, log_path=log_path, pipeline_run_id=pipeline_run_id,
                node_id=node_id, started_at=utc_now(), status=Status.RUNNING, message="", metrics={},
            )  # fmt: skip
            session.add(row)
            begun: dict[str, Any] = {"row": attempt_digest(row), "stage_key": claim.stage_key, "number": row.number}
            if given:
                begun["inputs"] = {i.name: i.artifact_id for i in given}
            record_event(session, "attempt.begun", row.attempt_id, begun)
            return row.attempt_id

    def running_inputs(self) -> dict[str, dict[str, str]]:
        """What every running attempt reads: attempt id -> input name -> artifact id, as it was begun."""
        begun = select(schema.Event).join(schema.Attempt, schema.Attempt.attempt_id == schema.Event.subject)
        running = schema.Attempt.status == Status.RUNNING
        with self._db.read() as session:
            events = session.scalars(begun.where(schema.Event.kind == "attempt.begun", running))
            return {event.subject: dict(event.payload.get("inputs", {})) for event in events}

    def launched(self, attempt_id: str, *, pid: int | None = None, job: str | None = None) -> None:
        """Say which process or cluster job the attempt became."""
        with self._db.write() as session:
            attempt_of(session, attempt_id)
            record_event(session, "attempt.launched", attempt_id, {"pid": pid, "job": job})

    def heartbeat(self, attempt_id: str, progress: Progress) -> None:
        """Show where a running attempt is; ignored once it has ended. Not an event: there are too many."""
        with self._db.write(chain=False) as session:
            session.execute(
                update(schema.Attempt)
                .where(schema.Attempt.attempt_id == attempt_id, schema.Attempt.status == Status.RUNNING)
                .values(progress=plain_json(progress.canonical()), heartbeat_at=utc_now())
            )

    def finish_attempt(
        self,
        attempt_id: str,
        exit_class: int,
        message: str = "",
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the end of an attempt that did not commit a run; the first verdict stands."""
        with self._db.write() as session:
            if attempt_of(session, attempt_id).status == Status.RUNNING:
                finish(session, attempt_id, Status.of_exit(exit_class), exit_class, message, metrics or {}, None)

    def lost(self) -> tuple[list[str], list[str]]:
        """Ids of the attempts and of the pipeline runs that are open although their process is gone.

        An attempt is gone when somebody else has the claim it ran under, or nobody: a lease that is over alone does
        not tell that its holder is not about to renew it. A pipeline run is gone when its process ended on this host.
        """
        with self._db.read() as session:
            return _lost(session, self._db.now(session))

    def reap(self) -> list[str]:
        """Close what is `lost`; returns the ids."""
        with self._db.write() as session:
            attempts, runs = _lost(session, self._db.now(session))
            for attempt_id in attempts:
                finish(session, attempt_id, Status.LOST, ExitClass.INFRASTRUCTURE, _LOST_MESSAGE, {}, None)
            for run_id in runs:
                verdict = {"status": Status.LOST, "exit_class": ExitClass.INFRASTRUCTURE, "message": _LOST_MESSAGE}
                record_event(session, "pipeline.finished", run_id, verdict)
            return attempts + runs

    def mean_duration(
        self,
        stage: str,
        *,
        recipe: str | None = None,
        node_id: str | None = None,
        config_digest: str | None = None,
        last: int = 5,
    ) -> float | None:
        """Mean working seconds of the last runs of a stage, all attempts of a run together.

        Narrowed to a recipe, a node or a configuration when given; None when there is no such run.
        """
        runs = select(schema.StageRun.stage_key).join(
            schema.Attempt, schema.Attempt.attempt_id == schema.StageRun.attempt_id
        )
        runs = runs.where(schema.StageRun.stage == stage)
        if config_digest is not None:
            runs = runs.where(schema.StageRun.config_digest == config_digest)
        if node_id is not None:
            runs = runs.where(schema.Attempt.node_id == node_id)
        if recipe is not None:
            runs = runs.join(schema.PipelineRun).where(schema.PipelineRun.recipe == recipe)
        with self._db.read() as session:
            recent = session.scalars(runs.order_by(schema.StageRun.committed_at.desc()).limit(last)).all()
            if not recent:
                return None
            spans = session.execute(
                select(schema.Attempt.started_at, schema.Attempt.finished_at).where(
                    schema.Attempt.stage_key.in_(set(recent)), schema.Attempt.status != Status.LOST
                )
            ).all()
        worked: float = sum((s.finished_at - s.started_at).total_seconds() for s in spans if s.finished_at)
        return worked / len(recent)


def attempt_digest(row: schema.Attempt) -> str:
    return row_digest(row, *PROJECTIONS[schema.Attempt])


def _close_earlier(session: Session, stage_key: str) -> int:
    """Close attempts of a key that never reported an end; the number of its last attempt, 0 without any."""
    for open_id in session.scalars(_open_attempts().where(schema.Attempt.stage_key == stage_key)).all():
        finish(session, open_id, Status.LOST, ExitClass.INFRASTRUCTURE, _LOST_MESSAGE, {}, None)
    return session.scalar(select(func.max(schema.Attempt.number)).where(schema.Attempt.stage_key == stage_key)) or 0


def _open_attempts() -> Any:
    return select(schema.Attempt.attempt_id).where(schema.Attempt.status == Status.RUNNING)


def _lost(session: Session, now: datetime) -> tuple[list[str], list[str]]:
    attempts = []
    for attempt_id in session.scalars(_open_attempts()).all():
        attempt = attempt_of(session, attempt_id)
        claim = session.get(schema.Claim, attempt.stage_key)
        if claim is None or claim.fence != attempt.fence or is_abandoned(claim, now):
            attempts.append(attempt_id)
    running = select(schema.PipelineRun).where(schema.PipelineRun.status == Status.RUNNING)
    return attempts, [run.pipeline_run_id for run in session.scalars(running) if is_dead(run.process)]


def attempt_of(session: Session, attempt_id: str) -> schema.Attempt:
    row = session.get(schema.Attempt, attempt_id)
    if row is None:
        raise InputError("ledger has no such attempt", value=attempt_id, next_step="m4v runs list")
    return row


def finish(
    session: Session,
    attempt_id: str,
    status: Status,
    exit_class: int,
    message: str,
    metrics: Mapping[str, Any],
    run_id: str | None,
) -> None:
    payload = {
        "status": status,
        "exit_class": int(exit_class),
        "message": message,
        "metrics": plain_json(metrics),
        "run_id": run_id,
    }
    record_event(session, "attempt.finished", attempt_id, payload)
