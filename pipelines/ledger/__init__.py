"""The ledger: runs, artifacts, lineage and history on SQLite or PostgreSQL. Plain domain code."""

from pipelines.ledger.channel_records import ApprovalRow, ArtifactDeleted, PinRow, RequestRow, RequestStatus
from pipelines.ledger.ids import new_id
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.lineage import LineageArtifact, LineageEdge, LineageGraph, LineageRun, ReuseEdge
from pipelines.ledger.records import (
    ArtifactRow,
    AttemptRow,
    ChainReport,
    ChannelMoved,
    ChannelRow,
    Claim,
    ClaimHeld,
    ClaimLost,
    EventRow,
    Exactness,
    NewRun,
    NodeOutcome,
    NodeRow,
    PipelineRunRow,
    PortRow,
    RunRow,
    Status,
    Withdrawn,
)
from pipelines.ledger.retention import Deletion
from pipelines.ledger.takedown_records import DrainRow, StepRow, TakedownRow, WithdrawalRow
from pipelines.ledger.verifications import VerificationRow

__all__ = [
    "ApprovalRow", "ArtifactDeleted", "ArtifactRow", "AttemptRow", "ChainReport", "ChannelMoved", "ChannelRow",
    "Claim", "ClaimHeld", "ClaimLost", "Deletion", "DrainRow", "EventRow", "Exactness", "Ledger", "LineageArtifact",
    "LineageEdge", "LineageGraph", "LineageRun", "NewRun", "NodeOutcome", "NodeRow", "PinRow", "PipelineRunRow",
    "PortRow", "RequestRow", "RequestStatus", "ReuseEdge", "RunRow", "Status", "StepRow", "TakedownRow",
    "VerificationRow", "WithdrawalRow", "Withdrawn", "new_id",
]  # fmt: skip
