"""Pipeline runs: the list with its filters, and what changed in it since it was shown."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from pipelines.ledger import Status
from pipelines.web.app.run_list import PAGE_ROWS, SINCE, changed, count_newer, describe, lines, run_filter
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
