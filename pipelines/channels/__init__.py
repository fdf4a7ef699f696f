"""Channels: which checkpoint is promoted, moved by gates, approvals and compare-and-swap. Plain domain code."""

from pipelines.channels.automatic import judged_checkpoint, promote_run
from pipelines.channels.gates import Verdict, gate_verdicts
from pipelines.channels.promote import Outcome, Promotion, approve, decline, promote, rollback

__all__ = [
    "Outcome", "Promotion", "Verdict", "approve", "decline", "gate_verdicts", "judged_checkpoint", "promote",
    "promote_run", "rollback",
]  # fmt: skip
