"""The page of one pipeline run, and its changes while it runs."""

from __future__ import annotations

from typing import Annotated

import yaml
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from pipelines.web.app.reproduction import of_pipeline_run
from pipelines.web.app.run_view import run_view
from pipelines.web.app.site import LedgerDep
from pipelines.web.app.views import fragment, page

router = APIRouter()


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
def live(ledger: LedgerDep, pipeline_run_id: str, seen: Annotated[str, Query(max_length=64)] = "") -> Response:
    """The part of the page that changes; 204 while it is as `seen`."""
    view = run_view(ledger, ledger.pipeline_run(pipeline_run_id))
    return Response(status_code=204) if view.seen == seen else HTMLResponse(fragment("run_live", view=view))
