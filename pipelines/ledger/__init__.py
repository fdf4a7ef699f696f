"""The ledger: runs, artifacts, lineage and history on SQLite or PostgreSQL. Plain domain code."""

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
    DrainRow,
    EventRow,
    Exactness,
    NewRun,
    NodeOutcome,
    NodeRow,
    PipelineRunRow,
    PortRow,
    RunRow,
    Status,
    StepRow,
    TakedownRow,
    WithdrawalRow,
    Withdrawn,
)

__all__ = [
    "ArtifactRow", "AttemptRow", "ChainReport", "ChannelMoved", "ChannelRow", "Claim", "ClaimHeld", "ClaimLost",
    "DrainRow", "EventRow", "Exactness", "Ledger", "LineageArtifact", "LineageEdge", "LineageGraph", "LineageRun",
    "NewRun", "NodeOutcome", "NodeRow", "PipelineRunRow", "PortRow", "ReuseEdge", "RunRow", "Status", "StepRow",
    "TakedownRow", "WithdrawalRow", "Withdrawn", "new_id",
]  # fmt: skip
