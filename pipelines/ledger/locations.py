"""Where artifacts lie: rows by the beginning of their location, and moving one's location as an event."""

from __future__ import annotations

from sqlalchemy import func, select

from pipelines.ledger import schema
from pipelines.ledger.chain import record_event
from pipelines.ledger.database import Database
from pipelines.ledger.records import ArtifactRow
from pipelines.ledger.runs import artifact_row


class LocationOps:
    """The location verbs of a Ledger."""

    _db: Database

    def artifacts_below(self, uri: str) -> list[ArtifactRow]:
        """Artifacts recorded at `uri` or below it, those whose bytes were deleted included, by kind and id."""
        place, below = schema.Artifact.uri, f"{uri}/"
        # Not LIKE: a location may hold its wildcards.
        query = select(schema.Artifact).where((place == uri) | (func.substr(place, 1, len(below)) == below))
        with self._db.read() as session:
            rows = session.scalars(query.order_by(schema.Artifact.kind, schema.Artifact.artifact_id))
            return [artifact_row(row) for row in rows]

    def move_location(self, row: ArtifactRow, uri: str, *, by: str) -> bool:
        """Say that an artifact lies at `uri` now; False when it is no longer recorded where `row` says."""
        with self._db.write() as session:
            found = session.get(schema.Artifact, (row.artifact_id, str(row.kind)))
            if found is None or found.uri != row.uri:
                return False
            moved = {"kind": str(row.kind), "uri": uri, "from": row.uri, "by": by}
            record_event(session, "artifact.located", row.artifact_id, moved)
            return True
