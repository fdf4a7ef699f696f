"""`m4v deploy`: write deployments to a Prefect server."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.output import JsonOption, RecipeArgument, SetOption, UntilOption, print_json, print_rows


def register(app: typer.Typer) -> None:
    app.command()(deploy)


def deploy(
    recipe: RecipeArgument,
    set_: SetOption = None,
    cron: Annotated[str | None, typer.Option(help='Schedule of the whole pipeline, UTC, e.g. "0 3 * * 1".')] = None,
    pool: Annotated[str, typer.Option(help="Process work pool; made when it is not there.")] = "m4v",
    until: UntilOption = None,
    run_home: Annotated[
        str | None, typer.Option(help="Home directory on the worker (default: the worker's $M4V_HOME).")
    ] = None,
    reconcile: Annotated[
        str | None, typer.Option(help='Schedule of `m4v reconcile` for the home, UTC, e.g. "*/10 * * * *".')
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Deploy RECIPE to the server in PREFECT_API_URL: one deployment for the pipeline, one per stage; with --reconcile
    also one that reconciles ledger, cluster and Prefect for the home."""
    from pipelines.deploy import deploy as write_deployments

    written = write_deployments(
        recipe, overrides=set_ or (), until=until, cron=cron, pool=pool, home=run_home, reconcile_cron=reconcile
    )
    if json_:
        print_json([d.to_json() for d in written])
        return
    print_rows(("deployment", "schedule", "id"), [(d.name, d.cron or "-", d.deployment_id) for d in written])
    print(f"start a worker: prefect worker start --pool {pool}")
