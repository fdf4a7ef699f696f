"""Clip index: which clips an artifact holds, and by what a clip is found; what checkpoints consumed."""

import sqlalchemy as sa
from alembic import op

from pipelines.ledger.migrations.exposure_tables import create_exposure_tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "artifact_group",
        sa.Column("artifact_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("group_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("artifact_no", "group_no", name="pk_artifact_group"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "artifact_part",
        sa.Column("artifact_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("part_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("artifact_no", "part_no", name="pk_artifact_part"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_artifact_part_part_no", "artifact_part", ["part_no", "artifact_no"], unique=False)
    op.create_table(
        "clip",
        sa.Column("clip_id", sa.LargeBinary(), nullable=False),
        sa.Column("digest_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source_key", sa.BigInteger(), nullable=False),
        sa.Column("start_us", sa.BigInteger(), nullable=False),
        sa.Column("end_us", sa.BigInteger(), nullable=False),
        sa.Column("source_no", sa.Integer(), nullable=False),
        sa.Column("block_no", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("source_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("clip_id", "digest_key", name="pk_clip"),
    )
    op.create_index("ix_clip_digest", "clip", ["digest_key"], unique=False)
    op.create_index("ix_clip_source", "clip", ["source_no", "source_key"], unique=False)
    op.create_table(
        "clip_index",
        sa.Column("artifact_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("members", sa.BigInteger(), nullable=False),
        sa.Column("done_rows", sa.BigInteger(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.Column("parts", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("artifact_no", name="pk_clip_index"),
        sa.UniqueConstraint("artifact_id", "kind", name="uq_clip_index_artifact_id_kind"),
    )
    op.create_table(
        "clip_part",
        sa.Column("part_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("members", sa.Integer(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("part_no", name="pk_clip_part"),
        sa.UniqueConstraint("digest", name="uq_clip_part_digest"),
    )
    op.create_table(
        "clip_source",
        sa.Column("source_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("source_no", name="pk_clip_source"),
        sa.UniqueConstraint("name", name="uq_clip_source_name"),
    )
    op.create_table(
        "hash_block",
        sa.Column("block_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("clips", sa.LargeBinary(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("words", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("block_no", name="pk_hash_block"),
    )
    op.create_table(
        "part_group",
        sa.Column("part_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("group_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("first", sa.LargeBinary(), nullable=False),
        sa.Column("last", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("group_no", "part_no", name="pk_part_group"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "part_ids",
        sa.Column("part_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("group_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("part_no", "group_no", name="pk_part_ids"),
    )
    op.create_table(
        "part_sample",
        sa.Column("clip_id", sa.LargeBinary(), nullable=False),
        sa.Column("part_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sample_id", sa.LargeBinary(), nullable=False),
        sa.Column("group_no", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("clip_id", "part_no", "sample_id", name="pk_part_sample"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sample_group",
        sa.Column("group_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source_no", sa.Integer(), nullable=False),
        sa.Column("media", sa.String(), nullable=False),
        sa.Column("t", sa.Integer(), nullable=False),
        sa.Column("h", sa.Integer(), nullable=False),
        sa.Column("w", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("group_no", name="pk_sample_group"),
        sa.UniqueConstraint("source_no", "media", "t", "h", "w", name="uq_sample_group_source_no_media_t_h_w"),
    )
    op.create_table(
        "source_url",
        sa.Column("url_key", sa.LargeBinary(), nullable=False),
        sa.Column("source_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("url_key", "source_no", "source_key", name="pk_source_url"),
        sqlite_with_rowid=False,
    )
    create_exposure_tables()


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
