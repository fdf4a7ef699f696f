"""Tables of exposure: what decides which samples a checkpoint consumed, and what was made from what.

Projections: of the `training.json` of checkpoints, and of the inputs and outputs of runs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from pipelines.ledger.schema import Base


class DataOrder(Base):
    """A sampler config on a dataset version, many checkpoints each. `plan` is its timetable, once it is known."""

    __tablename__ = "data_order"
    order_id: Mapped[str] = mapped_column(primary_key=True)  # digest of dataset id and config
    dataset_id: Mapped[str]
    config: Mapped[dict[str, Any]]
    plan: Mapped[dict[str, Any] | None]


class CheckpointExposure(Base):
    """`ExposureState` of a checkpoint."""

    __tablename__ = "checkpoint_exposure"
    checkpoint_id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[str]
    dataset_id: Mapped[str | None]
    order_id: Mapped[str | None]
    seed: Mapped[str]  # decimal: BIGINT ends before a 64-bit seed does
    global_batch: Mapped[dict[str, Any]]  # {"samples": of each step of the first round}
    cursor: Mapped[int]
    init_from: Mapped[str | None]
    __table_args__ = (
        # All that an impact asks of every checkpoint, in the order that it is grouped by.
        Index(
            "ix_checkpoint_exposure_course",
            *("dataset_id", "order_id", "stage", "seed", "cursor", "checkpoint_id", "init_from"),
        ),
        Index("ix_checkpoint_exposure_init_from", "init_from", "checkpoint_id"),
    )


class ArtifactStem(Base):
    """Samples, scores and reports with the checkpoints, datasets and clip tables that they were made from, each
    without passing through another of these: what a takedown lists, without a walk."""

    __tablename__ = "artifact_stem"
    stem_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    artifact_id: Mapped[str] = mapped_column(primary_key=True)
    __table_args__ = (
        Index("ix_artifact_stem_artifact", "artifact_id", "stem_id"),
        {"sqlite_with_rowid": False},  # rows of a stem lie together
    )
