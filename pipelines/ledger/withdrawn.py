"""The refusal of artifacts that a takedown took out of use, inside a transaction."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from pipelines.ledger.records import Withdrawn
from pipelines.ledger.schema_takedown import Withdrawal


def refuse_withdrawn(session: Session, artifacts: Iterable[tuple[str, str]], where: str | None = None) -> None:
    """Raise Withdrawn for the first artifact that a takedown took out of use."""
    for artifact_id, kind in artifacts:
        row = session.get(Withdrawal, (artifact_id, str(kind)))
        if row is not None:
            raise Withdrawn(artifact_id, str(kind), row.takedown_id, where)
