"""Tables of exposure: what decides which samples a checkpoint consumed, and what was made from what.

Projections: of the `training.json` of checkpoints, and of the inputs and outputs of runs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, Integer, LargeBinary, UniqueConstraint
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
    __table_args__ = (Index("ix_checkpoint_exposure_init_from", "init_from", "checkpoint_id"),)


class CheckpointCourse(Base):
    """Recorded checkpoints whose draws the same facts decide, in the order they were recorded: what an impact asks of
    all of them, packed, for thousands of rows take far longer to fetch than to find.

    `ids` holds their ids with commas between, `states` for each its `ArtifactNumber`, that of the checkpoint it
    started from (0: none) and its cursor; `courses.STATE` says how.
    """

    __tablename__ = "checkpoint_course"
    course_no: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    stage: Mapped[str]
    dataset_id: Mapped[str | None]
    order_id: Mapped[str | None]
    seed: Mapped[str]
    ids: Mapped[str]
    states: Mapped[bytes] = mapped_column(LargeBinary)
    __table_args__ = (Index("ix_checkpoint_course_dataset", "dataset_id", "stage"),)


class ArtifactNumber(Base):
    """Checkpoints, datasets, clip tables and what was made from them, by number: ids are sixteen times as long."""

    __tablename__ = "artifact_number"
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    __table_args__ = (UniqueConstraint("artifact_id", "kind"),)


class Stem(Base):
    """Numbers of the samples, scores and reports that were made from a checkpoint, dataset or clip table without
    passing through another of these, 4 bytes little-endian each: what a takedown lists, without a walk."""

    __tablename__ = "stem"
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    samples: Mapped[bytes] = mapped_column(LargeBinary)
    scores: Mapped[bytes] = mapped_column(LargeBinary)
    report: Mapped[bytes] = mapped_column(LargeBinary)
