"""Pairs of stem and product as revisions 0002 to 0004 kept them; 0005 makes numbers of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

# An input that is a stem counts itself, any other one its own stems. The same statement on both databases.
_STEM_ROWS = sa.text("""
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
_CONSUMERS = sa.text("""
SELECT DISTINCT taken.run_id FROM run_output AS made
JOIN run_input AS taken ON taken.artifact_id = made.artifact_id AND taken.kind = made.kind
WHERE made.run_id = :run_id AND made.kind IN ('samples', 'scores', 'report')
""")


def fill_stem_rows() -> None:
    """Run by run, as they were committed: inputs were outputs of earlier ones."""
    connection = op.get_bind()
    runs = connection.execute(sa.text("SELECT run_id FROM stage_run ORDER BY committed_at, run_id")).scalars().all()
    for run_id in runs:
        waiting: list[str] = [run_id]
        while waiting:
            here = {"run_id": waiting.pop()}
            if connection.execute(_STEM_ROWS, here).rowcount:
                # The same bytes were made before and taken up: those who did have the new stems as well.
                waiting.extend(connection.execute(_CONSUMERS, here).scalars().all())
