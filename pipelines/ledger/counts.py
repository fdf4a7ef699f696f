"""Counts over the whole ledger, for monitoring."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.records import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerCounts:
    """`artifacts` and `artifact_bytes` by kind, of those whose bytes were not deleted; `events` is the last one's
    number; `delivered` says up to which event each sink has been fed."""

    runs: dict[str, int]
    running_attempts: int
    artifacts: dict[str, int]
    artifact_bytes: dict[str, int]
    events: int
    delivered: dict[str, int]


class CountOps:
    """The counting verb of a Ledger."""

    _db: Database

    def counts(self) -> LedgerCounts:
        """All counts of one moment."""
        run, artifact, attempt = schema.PipelineRun, schema.Artifact, schema.Attempt
        kept = (
            select(artifact.kind, func.count(), func.sum(artifact.size_bytes))
            .where(artifact.deletion.is_(None))
            .group_by(artifact.kind)
        )
        with self._db.read() as session:
            by_status = {r[0]: r[1] for r in session.execute(select(run.status, func.count()).group_by(run.status))}
            stored = session.execute(kept).all()
            running = select(func.count()).select_from(attempt).where(attempt.status == str(Status.RUNNING))
            return LedgerCounts(
                runs={str(s): by_status.get(str(s), 0) for s in Status},
                running_attempts=session.scalar(running) or 0,
                artifacts={r[0]: r[1] for r in stored},
                artifact_bytes={r[0]: int(r[2]) for r in stored},
                events=session.scalar(select(schema.ChainHead.seq)) or 0,
                delivered={o.sink: o.delivered_seq for o in session.scalars(select(schema.Outbox))},
            )
