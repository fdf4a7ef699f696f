"""Tables of takedown cases and of drain requests. Every row is immutable and tied to the event chain."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from pipelines.ledger.schema import Base


class DrainRequest(Base):
    """Somebody wants running work to save its state and stop: a whole pipeline run, or a stage key's claims up to
    `fence` (a later claim on the key is a new start, and is not asked)."""

    __tablename__ = "drain_request"
    drain_id: Mapped[str] = mapped_column(primary_key=True)
    stage_key: Mapped[str | None]
    fence: Mapped[int | None]
    pipeline_run_id: Mapped[str | None] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"))
    takedown_id: Mapped[str | None] = mapped_column(ForeignKey("takedown.takedown_id"))
    reason: Mapped[str]
    requested_by: Mapped[str]
    requested_at: Mapped[datetime]
    __table_args__ = (
        Index("ix_drain_request_stage_key", "stage_key"),
        Index("ix_drain_request_pipeline_run", "pipeline_run_id"),
    )


class TakedownClips(Base):
    """Clips that a case found when it was opened or taken up again, in parts; with the selector, the block list."""

    __tablename__ = "takedown_clips"
    takedown_id: Mapped[str] = mapped_column(ForeignKey("takedown.takedown_id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clips: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]


class TakedownStep(Base):
    """A step of a case that is done, for one item (an artifact, an attempt; empty for the case as a whole)."""

    __tablename__ = "takedown_step"
    takedown_id: Mapped[str] = mapped_column(ForeignKey("takedown.takedown_id"), primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(primary_key=True)
    facts: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]


class Withdrawal(Base):
    """An artifact that may be used no more: no cache hit, no input of a new start."""

    __tablename__ = "withdrawal"
    artifact_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    takedown_id: Mapped[str] = mapped_column(ForeignKey("takedown.takedown_id"), index=True)
    reason: Mapped[str]
    recorded_at: Mapped[datetime]
    __table_args__ = (ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),)
