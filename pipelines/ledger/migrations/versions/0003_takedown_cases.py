"""Takedown cases: their clips, steps and withdrawn artifacts; and requests to drain running work."""

import sqlalchemy as sa
from alembic import op

from pipelines.ledger.migrations.guards import guard
from pipelines.ledger.types import CanonicalJson, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPEND_ONLY = ("drain_request", "takedown_clips", "takedown_step", "withdrawal")


def upgrade() -> None:
    create_tables()
    for table in APPEND_ONLY:
        guard(table)


def create_tables() -> None:
    case = ["takedown_id"], ["takedown.takedown_id"]
    op.create_table(
        "drain_request",
        sa.Column("drain_id", sa.String(), nullable=False),
        sa.Column("stage_key", sa.String(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=True),
        sa.Column("pipeline_run_id", sa.String(), nullable=True),
        sa.Column("takedown_id", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_drain_request_pipeline_run_id"
        ),
        sa.ForeignKeyConstraint(*case, name="fk_drain_request_takedown_id"),
        sa.PrimaryKeyConstraint("drain_id", name="pk_drain_request"),
    )
    op.create_index("ix_drain_request_stage_key", "drain_request", ["stage_key"], unique=False)
    op.create_index("ix_drain_request_pipeline_run", "drain_request", ["pipeline_run_id"], unique=False)
    op.create_table(
        "takedown_clips",
        sa.Column("takedown_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("clips", CanonicalJson(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(*case, name="fk_takedown_clips_takedown_id"),
        sa.PrimaryKeyConstraint("takedown_id", "number", name="pk_takedown_clips"),
    )
    op.create_table(
        "takedown_step",
        sa.Column("takedown_id", sa.String(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("item", sa.String(), nullable=False),
        sa.Column("facts", CanonicalJson(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(*case, name="fk_takedown_step_takedown_id"),
        sa.PrimaryKeyConstraint("takedown_id", "step", "item", name="pk_takedown_step"),
    )
    op.create_table(
        "withdrawal",
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("takedown_id", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"], name="fk_withdrawal_artifact_id_kind"
        ),
        sa.ForeignKeyConstraint(*case, name="fk_withdrawal_takedown_id"),
        sa.PrimaryKeyConstraint("artifact_id", "kind", name="pk_withdrawal"),
    )
    op.create_index("ix_withdrawal_takedown_id", "withdrawal", ["takedown_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
