"""`m4v reconcile`: hold what the ledger says is running against what runs, and repair it.

JSON: findings [{kind, subject, says, repair, repaired}], asked {processes, slurm, prefect} (whether each could be).
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipelines.access import Role, command_actor, require
from pipelines.cli.output import JsonOption, print_json, print_rows
from pipelines.ledger import Ledger
from pipelines.reconcile import Finding, ask_all, reconcile_jobs, reconcile_lost
from pipelines.settings import load_settings
from pipelines.workspace import Workspace

_NOT_ASKED = {
    "slurm": "cluster jobs were not looked at: this machine has no Slurm, or one that knows no cluster",
    "prefect": "flow runs were not looked at: PREFECT_API_URL is not set",
}


def register(app: typer.Typer) -> None:
    app.command()(reconcile)


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    cancel_unwatched: Annotated[
        bool,
        typer.Option("--cancel-unwatched", help="Cancel cluster jobs that a later run would attach to."),
    ] = False,
    days: Annotated[float, typer.Option(min=0.01, help="How far back Prefect's flow runs are looked at.")] = 7.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that a flow run may take to say what the ledger says.")
    ] = 120.0,
    json_: JsonOption = False,
) -> None:
    """Repair what ledger, cluster and Prefect say differently of the same runs; killed, the same command goes on.

    Attempts and runs without a process are closed as lost, cluster jobs whose attempt has ended are cancelled, flow
    runs on the server in PREFECT_API_URL get the ledger's verdict. `m4v deploy --reconcile` puts it on a schedule.
    """
    workspace, apply = Workspace.open(), not dry_run
    if apply:
        require(command_actor(load_settings(workspace).access), Role.OPERATOR, "reconcile")
    with Ledger.open(workspace.ledger_url) as ledger:
        found, asked, problems = ask_all(
            {
                "processes": lambda: reconcile_lost(ledger, apply=apply),
                "slurm": lambda: reconcile_jobs(ledger, apply=apply, cancel_unwatched=cancel_unwatched),
                "prefect": lambda: _flow_runs(ledger, apply, days, grace),
            }
        )
    if json_:
        print_json({"findings": [each.to_json() for each in found], "asked": asked})
    else:
        _tell(found, apply)
        for name in (name for name, heard in asked.items() if not heard and not problems):
            print(_NOT_ASKED[name])
    if problems:
        raise problems[0]


def _flow_runs(ledger: Ledger, apply: bool, days: float, grace: float) -> list[Finding] | None:
    if not os.environ.get("PREFECT_API_URL"):
        return None
    from pipelines.reconcile.flow_runs import reconcile_flow_runs  # Prefect's import takes two seconds

    return reconcile_flow_runs(ledger, apply=apply, days=days, grace_s=grace)


def _tell(found: list[Finding], apply: bool) -> None:
    rows = [(each.kind, each.subject, each.says, each.repair, "yes" if each.repaired else "no") for each in found]
    if rows:
        print_rows(("finding", "of", "what", "repair", "done"), rows, text=("what", "repair"))
    else:
        print("everything is as the ledger has it")
    if found and not apply:
        print("nothing was changed: leave --dry-run out")
