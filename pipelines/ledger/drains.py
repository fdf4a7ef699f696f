"""Drain requests: any process may ask running work, wherever it is, to save its state and stop."""

from __future__ import annotations

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event, row_digest
from pipelines.ledger.claims import is_live
from pipelines.ledger.database import Database
from pipelines.ledger.ids import new_id
from pipelines.ledger.records import Claim, Status
from pipelines.ledger.schema_takedown import DrainRequest
from pipelines.ledger.takedown_records import DrainRow
from pipelines.ledger.types import utc_now


class DrainOps:
    """The drain verbs of a Ledger."""

    _db: Database

    def request_drain(
        self,
        *,
        stage_key: str | None = None,
        pipeline_run_id: str | None = None,
        reason: str,
        requested_by: str,
        takedown_id: str | None = None,
    ) -> DrainRow:
        """Ask what runs now under a stage key, or a whole pipeline run, to stop; asking again changes nothing.

        Whoever watches the work looks for requests every second or so. Raises InputError when nothing of the kind
        is running.
        """
        if (stage_key is None) == (pipeline_run_id is None):
            raise InputError("a drain is of a stage key or of a pipeline run", value=stage_key or pipeline_run_id)
        with self._db.write() as session:
            fence = None
            if stage_key is not None:
                fence = self._live_fence(session, stage_key)
                found = _asked(session, stage_key, fence, None)
            else:
                assert pipeline_run_id is not None
                _check_running(session, pipeline_run_id)
                found = _asked(session, None, None, pipeline_run_id)
            if found is not None:
                return _drain_row(found)
            row = DrainRequest(
                drain_id=new_id(), stage_key=stage_key, fence=fence, pipeline_run_id=pipeline_run_id,
                takedown_id=takedown_id, reason=reason, requested_by=requested_by, requested_at=utc_now(),
            )  # fmt: skip
            session.add(row)
            told = {"stage_key": stage_key, "fence": fence, "pipeline_run_id": pipeline_run_id, "reason": reason}
            record_event(session, "drain.requested", row.drain_id, {**told, "row": row_digest(row)})
            return _drain_row(row)

    def drain_wanted(self, *, claim: Claim | None = None, pipeline_run_id: str | None = None) -> DrainRow | None:
        """The request that concerns work under `claim` or of a pipeline run; the run's own comes first."""
        with self._db.read() as session:
            for key, fence, run in (
                (None, None, pipeline_run_id),
                (claim.stage_key, claim.fence, None) if claim is not None else (None, None, None),
            ):
                found = _asked(session, key, fence, run) if key or run else None
                if found is not None:
                    return _drain_row(found)
        return None

    def drain_requests(self, *, takedown_id: str | None = None, limit: int | None = 50) -> list[DrainRow]:
        """Requests, newest first."""
        query = select(DrainRequest).order_by(DrainRequest.drain_id.desc()).limit(limit)
        if takedown_id is not None:
            query = query.where(DrainRequest.takedown_id == takedown_id)
        with self._db.read() as session:
            return [_drain_row(row) for row in session.scalars(query)]

    def _live_fence(self, session: Session, stage_key: str) -> int:
        row = session.get(schema.Claim, stage_key)
        if row is None or not is_live(row, self._db.now(session)):
            raise InputError("nothing is running under this stage key", value=stage_key[:16], next_step="m4v runs list")
        return row.fence


def _check_running(session: Session, pipeline_run_id: str) -> None:
    row = session.get(schema.PipelineRun, pipeline_run_id)
    if row is None or row.status != Status.RUNNING:
        found = "there is no such pipeline run" if row is None else f"the pipeline run has ended: {row.status}"
        raise InputError(found, value=pipeline_run_id, next_step="m4v runs list")


def _asked(
    session: Session, stage_key: str | None, fence: int | None, pipeline_run_id: str | None
) -> DrainRequest | None:
    of_run = DrainRequest.pipeline_run_id == pipeline_run_id
    of_key = and_(DrainRequest.stage_key == stage_key, DrainRequest.fence >= (fence or 0))
    query = select(DrainRequest).where(of_run if pipeline_run_id is not None else of_key)
    return session.scalars(query.order_by(DrainRequest.drain_id).limit(1)).one_or_none()


def _drain_row(row: DrainRequest) -> DrainRow:
    return DrainRow(**{name: getattr(row, name) for name in DrainRow.__dataclass_fields__})
