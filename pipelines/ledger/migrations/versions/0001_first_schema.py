"""First schema: every table of the ledger, with triggers that keep its history append-only."""

import sqlalchemy as sa
from alembic import op

from pipelines.ledger.migrations.guards import guard
from pipelines.ledger.schema import GENESIS
from pipelines.ledger.types import CanonicalJson, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Table -> columns an UPDATE may touch (projections); DELETE is refused everywhere.
GUARDED: dict[str, tuple[str, ...]] = {
    "event": (),
    "stage_run": (),
    "run_input": (),
    "run_output": (),
    "reuse": (),
    "channel": (),
    "takedown": (),
    "artifact": ("uri",),
    "attempt": (
        "pid", "job", "status", "exit_class", "message", "metrics", "finished_at", "run_id", "progress", "heartbeat_at",
    ),
    "pipeline_run": ("status", "exit_class", "message", "finished_at"),
}  # fmt: skip


def upgrade() -> None:
    create_tables()
    op.execute(sa.text("INSERT INTO chain_head (id, seq, hash) VALUES (1, 0, :genesis)").bindparams(genesis=GENESIS))
    if op.get_bind().dialect.name != "sqlite":
        op.execute(
            "CREATE FUNCTION m4v_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
    for table, free in GUARDED.items():
        guard(table, free)


def create_tables() -> None:
    op.create_table(
        "artifact",
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("summary", CanonicalJson(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("artifact_id", "kind", name="pk_artifact"),
    )
    op.create_table(
        "chain_head",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_chain_head"),
    )
    op.create_table(
        "claim",
        sa.Column("stage_key", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("lease_until", UtcDateTime(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("stage_key", name="pk_claim"),
    )
    op.create_table(
        "event",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("payload", CanonicalJson(), nullable=False),
        sa.Column("prev_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_event"),
        sa.UniqueConstraint("prev_hash", name="uq_event_prev_hash"),
    )
    op.create_index("ix_event_subject", "event", ["subject"], unique=False)
    op.create_table(
        "outbox",
        sa.Column("sink", sa.String(), nullable=False),
        sa.Column("delivered_seq", sa.BigInteger(), nullable=False),
        sa.Column("delivered_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("sink", name="pk_outbox"),
    )
    op.create_table(
        "pipeline_run",
        sa.Column("pipeline_run_id", sa.String(), nullable=False),
        sa.Column("recipe", sa.String(), nullable=False),
        sa.Column("recipe_digest", sa.String(), nullable=False),
        sa.Column("resolved", CanonicalJson(), nullable=False),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("process", sa.String(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("exit_class", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("pipeline_run_id", name="pk_pipeline_run"),
    )
    op.create_index("ix_pipeline_run_recipe", "pipeline_run", ["recipe"], unique=False)
    op.create_table(
        "takedown",
        sa.Column("takedown_id", sa.String(), nullable=False),
        sa.Column("selector", CanonicalJson(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("requested_by", sa.String(), nullable=False),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("takedown_id", name="pk_takedown"),
    )
    op.create_table(
        "attempt",
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("stage_key", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("launcher", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("work_dir", sa.String(), nullable=False),
        sa.Column("log_path", sa.String(), nullable=False),
        sa.Column("pipeline_run_id", sa.String(), nullable=True),
        sa.Column("node_id", sa.String(), nullable=True),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("job", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("exit_class", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("metrics", CanonicalJson(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("progress", CanonicalJson(), nullable=True),
        sa.Column("heartbeat_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_attempt_pipeline_run_id"
        ),
        sa.PrimaryKeyConstraint("attempt_id", name="pk_attempt"),
        sa.UniqueConstraint("stage_key", "number", name="uq_attempt_stage_key_number"),
    )
    op.create_index("ix_attempt_pipeline_run", "attempt", ["pipeline_run_id"], unique=False)
    op.create_index("ix_attempt_stage", "attempt", ["stage", "started_at"], unique=False)
    op.create_index("ix_attempt_status", "attempt", ["status"], unique=False)
    op.create_table(
        "channel",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("moved_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("moved_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"], name="fk_channel_artifact_id_kind"
        ),
        sa.PrimaryKeyConstraint("name", "seq", name="pk_channel"),
    )
    op.create_table(
        "stage_run",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("stage_key", sa.String(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("stage_version", sa.BigInteger(), nullable=False),
        sa.Column("key_record", CanonicalJson(), nullable=False),
        sa.Column("config", CanonicalJson(), nullable=False),
        sa.Column("config_digest", sa.String(), nullable=False),
        sa.Column("code_digest", sa.String(), nullable=False),
        sa.Column("environment", CanonicalJson(), nullable=False),
        sa.Column("seed", sa.String(), nullable=False),
        sa.Column("exactness", sa.String(), nullable=False),
        sa.Column("metrics", CanonicalJson(), nullable=False),
        sa.Column("attempt_id", sa.String(), nullable=False),
        sa.Column("committed_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.attempt_id"], name="fk_stage_run_attempt_id"),
        sa.PrimaryKeyConstraint("run_id", name="pk_stage_run"),
        sa.UniqueConstraint("stage_key", "generation", name="uq_stage_run_stage_key_generation"),
    )
    op.create_index("ix_stage_run_stage", "stage_run", ["stage", "committed_at"], unique=False)
    op.create_table(
        "pipeline_run_node",
        sa.Column("pipeline_run_id", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("stage_key", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("attempt_id", sa.String(), nullable=True),
        sa.Column("how", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_pipeline_run_node_pipeline_run_id"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["stage_run.run_id"], name="fk_pipeline_run_node_run_id"),
        sa.PrimaryKeyConstraint("pipeline_run_id", "node_id", name="pk_pipeline_run_node"),
    )
    op.create_index("ix_pipeline_run_node_node", "pipeline_run_node", ["node_id"], unique=False)
    op.create_index("ix_pipeline_run_node_run", "pipeline_run_node", ["run_id"], unique=False)
    op.create_table(
        "reuse",
        sa.Column("reuse_id", sa.String(), nullable=False),
        sa.Column("pipeline_run_id", sa.String(), nullable=False),
        sa.Column("node_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("recorded_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["pipeline_run_id"], ["pipeline_run.pipeline_run_id"], name="fk_reuse_pipeline_run_id"),
        sa.ForeignKeyConstraint(["run_id"], ["stage_run.run_id"], name="fk_reuse_run_id"),
        sa.PrimaryKeyConstraint("reuse_id", name="pk_reuse"),
    )
    op.create_index("ix_reuse_pipeline_run_id", "reuse", ["pipeline_run_id"], unique=False)
    op.create_index("ix_reuse_run_id", "reuse", ["run_id"], unique=False)
    op.create_table(
        "run_input",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"], name="fk_run_input_artifact_id_kind"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["stage_run.run_id"], name="fk_run_input_run_id"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_run_input"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_run_input_artifact", "run_input", ["artifact_id", "run_id", "name"], unique=False)
    op.create_table(
        "run_output",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"], name="fk_run_output_artifact_id_kind"
        ),
        sa.ForeignKeyConstraint(["run_id"], ["stage_run.run_id"], name="fk_run_output_run_id"),
        sa.PrimaryKeyConstraint("run_id", "name", name="pk_run_output"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_run_output_artifact", "run_output", ["artifact_id", "run_id", "name"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
