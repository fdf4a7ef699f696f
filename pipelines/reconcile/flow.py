"""The reconciliation as a Prefect flow, for a schedule (`m4v deploy --reconcile CRON`)."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact

from m4v.core.errors import ConfigError
from pipelines.flows import worker_home
from pipelines.ledger import Ledger
from pipelines.reconcile import ask_all, reconcile_jobs, reconcile_lost
from pipelines.reconcile.flow_runs import reconcile_flow_runs
from pipelines.workspace import Workspace

DAYS = 7.0


@flow(name="m4v-reconcile", validate_parameters=True, persist_result=False, retries=0)
def reconcile(home: str | None = None, days: float = DAYS) -> int:
    """Repair what ledger, cluster and Prefect say differently of the runs of a home; the number of findings.

    - home: directory of the ledger (default: M4V_HOME of the worker).
    - days: how far back flow runs are looked at.
    """
    if days <= 0:
        raise ConfigError("how far to look back is a positive number of days", value=days, where="days")
    with Ledger.open(Workspace.open(worker_home(home)).ledger_url) as ledger:
        found, _, problems = ask_all(
            {
                "processes": lambda: reconcile_lost(ledger, apply=True),
                "slurm": lambda: reconcile_jobs(ledger, apply=True, cancel_unwatched=False),
                "prefect": lambda: reconcile_flow_runs(ledger, apply=True, days=days),
            }
        )
    if found:
        create_table_artifact([each.to_json() for each in found], key="reconciled", description="What was not as said")
    if problems:
        raise problems[0]
    return len(found)
