"""Pipeline runs: the list and the page of one."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from pipelines.web.app.site import LedgerDep
from pipelines.web.app.views import page

router = APIRouter()


@router.get("/runs")
def listing(request: Request, ledger: LedgerDep) -> HTMLResponse:
    """Pipeline runs, newest first."""
    return page(request, "runs", here="runs", title="Runs", runs=ledger.pipeline_runs(limit=50))
