"""Tables of promotion requests, their approvals, pins, and artifacts that running pipelines hold."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from pipelines.ledger.schema import Base


class PromotionRequest(Base):
    """Somebody asked to move a channel that demands approvals. Projections: status, note, closed_at.

    `expected_seq`: the channel's entry when it was asked (0: none); when it has moved on, the request is void.
    """

    __tablename__ = "promotion_request"
    request_id: Mapped[str] = mapped_column(primary_key=True)
    channel: Mapped[str]
    artifact_id: Mapped[str]
    kind: Mapped[str]
    expected_seq: Mapped[int]
    approvals_needed: Mapped[int]
    requested_by: Mapped[str]
    reason: Mapped[str]
    facts: Mapped[dict[str, Any]]
    pipeline_run_id: Mapped[str | None] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"))
    requested_at: Mapped[datetime]
    status: Mapped[str]
    note: Mapped[str]
    closed_at: Mapped[datetime | None]
    __table_args__ = (
        ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),
        Index("ix_promotion_request_status", "status"),
        Index("ix_promotion_request_channel", "channel", "requested_at"),
        Index("ix_promotion_request_run", "pipeline_run_id"),
    )


class Approval(Base):
    """One person's word on a request: `decision` is `approve` or `decline`."""

    __tablename__ = "approval"
    request_id: Mapped[str] = mapped_column(ForeignKey("promotion_request.request_id"), primary_key=True)
    actor: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    decision: Mapped[str]
    comment: Mapped[str]
    given_at: Mapped[datetime]


class Pin(Base):
    """An artifact that garbage collection must keep. Projections: released_by, released_at."""

    __tablename__ = "pin"
    pin_id: Mapped[str] = mapped_column(primary_key=True)
    artifact_id: Mapped[str]
    kind: Mapped[str]
    reason: Mapped[str]
    pinned_by: Mapped[str]
    pinned_at: Mapped[datetime]
    released_by: Mapped[str | None]
    released_at: Mapped[datetime | None]
    __table_args__ = (
        ForeignKeyConstraint(["artifact_id", "kind"], ["artifact.artifact_id", "artifact.kind"]),
        Index("ix_pin_artifact", "artifact_id"),
    )


class Hold(Base):
    """An artifact that a pipeline run uses, or is about to publish; garbage collection keeps it while the run lives.

    Working state like `claim`: rows of ended runs mean nothing and go.
    """

    __tablename__ = "hold"
    pipeline_run_id: Mapped[str] = mapped_column(ForeignKey("pipeline_run.pipeline_run_id"), primary_key=True)
    artifact_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
