"""Stems: from which checkpoints, datasets and clip tables samples, scores and reports were made."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

# An input that is a stem counts itself, any other one its own stems. The same statements on both databases.
_STEM_ROWS = text("""
INSERT INTO artifact_stem (stem_id, kind, artifact_id)
SELECT DISTINCT found.stem_id, made.kind, made.artifact_id
FROM run_output AS made
JOIN (
    SELECT artifact_id AS stem_id FROM run_input
    WHERE run_id = :run_id AND kind IN ('checkpoint', 'dataset', 'clips')
    UNION
    SELECT stem.stem_id FROM run_input AS taken
    JOIN artifact_stem AS stem ON stem.artifact_id = taken.artifact_id AND stem.kind = taken.kind
    WHERE taken.run_id = :run_id AND taken.kind NOT IN ('checkpoint', 'dataset', 'clips')
) AS found ON 1 = 1
WHERE made.run_id = :run_id AND made.kind IN ('samples', 'scores', 'report')
ON CONFLICT DO NOTHING
""")
_CONSUMERS = text("""
SELECT DISTINCT taken.run_id FROM run_output AS made
JOIN run_input AS taken ON taken.artifact_id = made.artifact_id AND taken.kind = made.kind
WHERE made.run_id = :run_id AND made.kind IN ('samples', 'scores', 'report')
""")


def record_stems(session: Session | Connection, run_id: str) -> None:
    """Note what the outputs of a run stem from, in the transaction that records the run."""
    if isinstance(session, Session):
        session.flush()
    waiting: list[str] = [run_id]
    while waiting:
        here = {"run_id": waiting.pop()}
        if session.execute(_STEM_ROWS, here).rowcount:  # type: ignore[attr-defined]
            # The same bytes were made before and taken up: those who did have the new stems as well.
            consumers: Sequence[str] = session.execute(_CONSUMERS, here).scalars().all()
            waiting.extend(consumers)
