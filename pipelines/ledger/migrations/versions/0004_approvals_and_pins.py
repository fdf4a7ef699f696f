"""Promotion requests, approvals, pins, holds; and whether an artifact's bytes were deleted."""

import sqlalchemy as sa
from alembic import op

from pipelines.ledger.migrations.guards import guard
from pipelines.ledger.types import CanonicalJson, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Table -> columns an UPDATE may touch (projections); DELETE is refused.
GUARDED: dict[str, tuple[str, ...]] = {
    "promotion_request": ("status", "note", "closed_at"),
    "approval": (),
    "pin": ("released_by", "released_at"),
}
# Projections added to tables that were there before; their triggers name the columns they refuse.
ADDED: dict[str, tuple[str, ...]] = {"artifact": ("deletion", "deleted_at")}
_ARTIFACT = ["artifact.artifact_id", "artifact.kind"]


def upgrade() -> None:
    op.add_column("artifact", sa.Column("deletion", sa.String(), nullable=True))
    op.add_column("artifact", sa.Column("deleted_at", UtcDateTime(), nullable=True))
    op.create_index("ix_artifact_deletion", "artifact", ["deletion"], unique=False)
    op.create_index("ix_artifact_list", "artifact", ["recorded_at", "artifact_id", "kind"], unique=False)
    op.create_index("ix_artifact_kind_list", "artifact", ["kind", "recorded_at", "artifact_id"], unique=False)
    listed = ["started_at", "pipeline_run_id", "status", "recipe", "trigger", "host"]
    op.create_index("ix_pipeline_run_list", "pipeline_run", listed, unique=False)
    create_tables()
    for table, free in GUARDED.items():
        guard(table, free)


def create_tables() -> None:
    op.create_table(
        "promotion_request",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("expected_seq", sa.BigInteger(), nullable=False),
        sa.Column("approvals_needed", sa.BigInteger(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("facts", CanonicalJson(), nullable=False),
        sa.Column("pipeline_run_id", sa.String(), nullable=True),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["artifact_id", "kind"], _ARTIFACT, name="fk_promotion_request_artifact_id_kind"),
        sa.ForeignKeyConstraint(
            ["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_promotion_request_pipeline_run_id"
        ),
        sa.PrimaryKeyConstraint("request_id", name="pk_promotion_request"),
    )
    op.create_index("ix_promotion_request_status", "promotion_request", ["status"], unique=False)
    op.create_index("ix_promotion_request_channel", "promotion_request", ["channel", "requested_at"], unique=False)
    op.create_index("ix_promotion_request_run", "promotion_request", ["pipeline_run_id"], unique=False)
    op.create_table(
        "approval",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("comment", sa.String(), nullable=False),
        sa.Column("given_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["promotion_request.request_id"], name="fk_approval_request_id"),
        sa.PrimaryKeyConstraint("request_id", "actor", name="pk_approval"),
    )
    op.create_table(
        "pin",
        sa.Column("pin_id", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("pinned_by", sa.String(), nullable=False),
        sa.Column("pinned_at", UtcDateTime(), nullable=False),
        sa.Column("released_by", sa.String(), nullable=True),
        sa.Column("released_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["artifact_id", "kind"], _ARTIFACT, name="fk_pin_artifact_id_kind"),
        sa.PrimaryKeyConstraint("pin_id", name="pk_pin"),
    )
    op.create_index("ix_pin_artifact", "pin", ["artifact_id"], unique=False)
    op.create_table(
        "hold",
        sa.Column("pipeline_run_id", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_hold_pipeline_run_id"),
        sa.PrimaryKeyConstraint("pipeline_run_id", "artifact_id", "kind", name="pk_hold"),
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
