"""Tables of exposure for revision 0002, filled from the runs that stand in the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pipelines.ledger.migrations.stem_rows import fill_stem_rows
from pipelines.ledger.types import CanonicalJson


def create_exposure_tables() -> None:
    op.create_table(
        "data_order",
        sa.Column("order_id", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.Column("config", CanonicalJson(), nullable=False),
        sa.Column("plan", CanonicalJson(), nullable=True),
        sa.PrimaryKeyConstraint("order_id", name="pk_data_order"),
    )
    op.create_table(
        "checkpoint_exposure",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=True),
        sa.Column("order_id", sa.String(), nullable=True),
        sa.Column("seed", sa.String(), nullable=False),
        sa.Column("global_batch", CanonicalJson(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("init_from", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("checkpoint_id", name="pk_checkpoint_exposure"),
    )
    course = ["dataset_id", "order_id", "stage", "seed", "cursor", "checkpoint_id", "init_from"]
    op.create_index("ix_checkpoint_exposure_course", "checkpoint_exposure", course)
    op.create_index("ix_checkpoint_exposure_init_from", "checkpoint_exposure", ["init_from", "checkpoint_id"])
    op.create_table(
        "artifact_stem",
        sa.Column("stem_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("stem_id", "kind", "artifact_id", name="pk_artifact_stem"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_artifact_stem_artifact", "artifact_stem", ["artifact_id", "stem_id"])
    fill_stem_rows()
