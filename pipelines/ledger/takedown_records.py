"""What the ledger gives of takedown cases and drain requests: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from m4v.core.artifacts import ArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TakedownRow:
    takedown_id: str
    selector: dict[str, Any]
    reason: str
    requested_by: str
    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRow:
    """A request to drain: a pipeline run, or the claims on a stage key up to `fence`."""

    drain_id: str
    stage_key: str | None
    fence: int | None
    pipeline_run_id: str | None
    takedown_id: str | None
    reason: str
    requested_by: str
    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalRow:
    """An artifact that a takedown took out of use."""

    artifact_id: str
    kind: ArtifactKind
    takedown_id: str
    reason: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """A step of a takedown case that is done, for one item."""

    takedown_id: str
    step: str
    item: str
    facts: dict[str, Any]
    recorded_at: datetime
