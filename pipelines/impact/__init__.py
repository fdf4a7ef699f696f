"""Takedown impact: what some clips touched, from the ledger alone."""

from pipelines.exposure.verdict import Verdict
from pipelines.impact.model import AffectedChannel, AffectedCheckpoint, Holder, Impact, MatchedClip, Product
from pipelines.impact.query import impact

__all__ = ["AffectedChannel", "AffectedCheckpoint", "Holder", "Impact", "MatchedClip", "Product", "Verdict", "impact"]
