"""Pipeline runs: the list with its filters, the page of one, and what changed in either since it was shown."""

from __future__ import annotations

from typing import Annotated

import yaml
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from pipelines.ledger import Status
from pipelines.web.app.reproduction import of_pipeline_run
from pipelines.web.app.run_list import PAGE_ROWS, SINCE, changed, count_newer, describe, lines, run_filter
from pipelines.web.app.run_view import run_view
from pipelines.web.app.site import LedgerDep
from pipelines.web.app.views import fragment, page

router = APIRouter()
NOTHING = 204  # htmx leaves the page as it is
Text = Annotated[str, Query(max_length=200)]


@router.get("/runs")
def listing(
    request: Request, ledger: LedgerDep, recipe: Text = "", status: Text = "", since: Text = "", q: Text = "",
    after: Text = "", before: Text = "",
) -> HTMLResponse:  # fmt: skip
    """Pipeline runs, newest first, a page at a time."""
    wanted = run_filter(recipe, status, since, q)
    found = ledger.list_runs(wanted, after=after or None, before=before or None, limit=PAGE_ROWS)
    return page(
        request, "runs", here="runs", title="Runs", found=found, lines=lines(ledger, found.rows),
        chosen={"recipe": recipe, "status": status, "since": since, "q": q}, recipes=ledger.recipes(),
        statuses=list(Status), spans=SINCE, described=describe(wanted), on_first_page=not found.newer,
    )  # fmt: skip


@router.get("/runs/changes")
def changes(
    ledger: LedgerDep, live: Annotated[list[str] | None, Query(max_length=200)] = None, newest: Text = "",
    recipe: Text = "", status: Text = "", since: Text = "", q: Text = "",
) -> Response:  # fmt: skip
    """The rows that changed since they were shown, and how many runs are newer; 204 when nothing did."""
    rows = changed(ledger, live or [])
    newer = count_newer(ledger, run_filter(recipe, status, since, q), newest) if newest else 0
    if not rows and not newer:
        return Response(status_code=NOTHING)
    chosen = {"recipe": recipe, "status": status, "since": since, "q": q}
    return HTMLResponse(fragment("runs_changes", lines=rows, newer=newer, most=PAGE_ROWS, chosen=chosen))


@router.get("/runs/{pipeline_run_id}")
def show(request: Request, ledger: LedgerDep, pipeline_run_id: str) -> HTMLResponse:
    """A pipeline run: its stages, what was reused and why, how far it is."""
    row = ledger.pipeline_run(pipeline_run_id)
    recipe = yaml.safe_dump(row.resolved, sort_keys=False, allow_unicode=True) if row.resolved else ""
    title = f"Run {row.pipeline_run_id}"
    reproduction = of_pipeline_run(ledger, row.pipeline_run_id)
    return page(
        request, "run", here="runs", title=title, view=run_view(ledger, row), recipe_yaml=recipe,
        reproduction=reproduction,
    )  # fmt: skip


@router.get("/runs/{pipeline_run_id}/live")
def live(ledger: LedgerDep, pipeline_run_id: str, seen: Text = "") -> Response:
    """The part of the page that changes; 204 while it is as `seen`."""
    view = run_view(ledger, ledger.pipeline_run(pipeline_run_id))
    return Response(status_code=NOTHING) if view.seen == seen else HTMLResponse(fragment("run_live", view=view))
