"""Holds what the ledger says is running against what runs: processes, cluster jobs and Prefect's flow runs.

The ledger is right about the past, the world about the present. Each finding is repaired in the direction of the one
that is right: an attempt whose claim has ended is lost, a job whose attempt has ended is cancelled, a flow run that
says something else than the ledger is told (spec: orchestration, the pattern for long GPU jobs).
"""

from pipelines.reconcile.findings import Finding, FindingKind, ask_all
from pipelines.reconcile.jobs import reconcile_jobs
from pipelines.reconcile.lost import reconcile_lost

__all__ = ["Finding", "FindingKind", "ask_all", "reconcile_jobs", "reconcile_lost"]
