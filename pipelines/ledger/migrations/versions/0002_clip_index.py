"""Clip index: which clips an artifact holds, and where checkpoints drew them."""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing yet."""


def downgrade() -> None:
    raise NotImplementedError("a ledger is never taken back; restore a backup")
