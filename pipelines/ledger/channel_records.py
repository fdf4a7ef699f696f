"""Values of promotion requests, approvals and pins, and what refuses a move of a channel."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError


class RequestStatus(StrEnum):
    """Of a promotion request. `void`: the channel moved on before it was approved."""

    PENDING = "pending"
    PROMOTED = "promoted"
    DECLINED = "declined"
    CANCELLED = "cancelled"  # by who asked
    VOID = "void"


class ArtifactDeleted(InputError):
    """The artifact's bytes were deleted, or are being deleted."""

    def __init__(self, artifact_id: str, kind: str, deleted_at: datetime | None) -> None:
        when = f" on {deleted_at:%Y-%m-%d %H:%M} UTC" if deleted_at else ""
        super().__init__(
            f"bytes of this {kind} were deleted{when}", value=artifact_id, next_step="run the recipe that made it again"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRow:
    """One person's word on a request; `decision` is `approve` or `decline`."""

    request_id: str
    actor: str
    role: str
    decision: str
    comment: str
    given_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """A promotion that waits, or waited, for approvals. `expected_seq`: the channel's entry when it was asked."""

    request_id: str
    channel: str
    artifact_id: str
    kind: ArtifactKind
    expected_seq: int
    approvals_needed: int
    requested_by: str
    reason: str
    facts: dict[str, Any]
    pipeline_run_id: str | None
    requested_at: datetime
    status: RequestStatus
    note: str
    closed_at: datetime | None
    approvals: tuple[ApprovalRow, ...] = ()

    @property
    def askers(self) -> list[str]:
        """Who wants this and so cannot approve it: who asked and, where a run did by its recipe, who started it."""
        return [self.requested_by, *filter(None, [self.facts.get("started_by")])]

    @property
    def approved_by(self) -> list[str]:
        return [a.actor for a in self.approvals if a.decision == "approve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRow:
    """A pin; `released_at` None while it holds."""

    pin_id: str
    artifact_id: str
    kind: ArtifactKind
    reason: str
    pinned_by: str
    pinned_at: datetime
    released_by: str | None
    released_at: datetime | None
