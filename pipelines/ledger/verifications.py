"""Verifications: what executing a run again has shown, as events of the hash chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from m4v.core.canonical import plain_json
from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.chain import record_event
from pipelines.ledger.database import Database

VERIFIED = "run.verified"
EVERY_RUN = "every run"  # subject of a verification of all stage runs of a ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRow:
    """One verdict on a stage run or a pipeline run; `facts` are the event's payload."""

    subject: str
    verdict: str
    at: datetime
    seq: int
    facts: dict[str, Any]


class VerificationOps:
    """The verification verbs of a Ledger."""

    _db: Database

    def record_verification(self, subject: str, verdict: str, facts: Mapping[str, Any]) -> None:
        """Record a verdict on a stage run, a pipeline run or EVERY_RUN; raises InputError for an id of none."""
        with self._db.write() as session:
            known = (schema.StageRun, schema.PipelineRun)
            if subject != EVERY_RUN and not any(session.get(table, subject) for table in known):
                raise InputError("ledger has no such run", value=subject, next_step="m4v runs list")
            payload = {name: plain_json(value) for name, value in facts.items()}
            record_event(session, VERIFIED, subject, {**payload, "verdict": verdict})

    def verifications(self, subject: str) -> list[VerificationRow]:
        """Verdicts on a run, oldest first."""
        event = schema.Event
        query = select(event).where(event.subject == subject, event.kind == VERIFIED).order_by(event.seq)
        with self._db.read() as session:
            return [
                VerificationRow(subject=e.subject, verdict=e.payload["verdict"], at=e.at, seq=e.seq, facts=e.payload)
                for e in session.scalars(query)
            ]
