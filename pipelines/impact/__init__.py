"""Takedown impact: what some clips touched, from the ledger alone."""

from pipelines.exposure.verdict import Verdict
from pipelines.impact.model import AffectedChannel, DroppedTable, Holder, Impact, MatchedClip
from pipelines.impact.query import impact
from pipelines.impact.rows import AffectedCheckpoint, Product

__all__ = [
    "AffectedChannel", "AffectedCheckpoint", "DroppedTable", "Holder", "Impact", "MatchedClip", "Product", "Verdict",
    "impact",
]  # fmt: skip
