"""Tables of ablations: their list, one of them, and its exports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse

from eval.ablation.export import as_csv, as_markdown, reading
from eval.ablation.records import CSV, MARKDOWN
from pipelines.inspection.ablations import NEWEST, has_more, listed, table_of
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page

router = APIRouter()
MOST = 1000  # tables of one page


@router.get("/evaluation/ablations")
def ablations(
    request: Request, ledger: LedgerDep, newest: Annotated[int, Query(ge=1, le=MOST)] = NEWEST
) -> HTMLResponse:
    return page(
        request, "ablations", here="evaluation", tables=listed(ledger, newest), newest=newest, most=MOST,
        more=has_more(ledger, newest),
    )  # fmt: skip


@router.get("/evaluation/ablations/{artifact_id}")
def ablation(request: Request, ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str) -> HTMLResponse:
    row, table = table_of(ledger, workspace.cache, artifact_id)
    return page(
        request, "ablation", here="evaluation", artifact=row, table=table, reading=reading(table), csv=CSV,
        markdown=MARKDOWN,
    )  # fmt: skip


@router.get(f"/evaluation/ablations/{{artifact_id}}/{CSV}")
def as_csv_file(ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str) -> PlainTextResponse:
    _, table = table_of(ledger, workspace.cache, artifact_id)
    return PlainTextResponse(as_csv(table), media_type="text/csv")


@router.get(f"/evaluation/ablations/{{artifact_id}}/{MARKDOWN}")
def as_markdown_file(ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str) -> PlainTextResponse:
    _, table = table_of(ledger, workspace.cache, artifact_id)
    return PlainTextResponse(as_markdown(table), media_type="text/markdown")
