"""Channels: which checkpoint is promoted, moved by gates, approvals and compare-and-swap. Plain domain code."""

from pipelines.channels.gates import Verdict, gate_verdicts
from pipelines.channels.promote import Outcome, Promotion, approve, decline, promote, rollback

__all__ = ["Outcome", "Promotion", "Verdict", "approve", "decline", "gate_verdicts", "promote", "rollback"]
