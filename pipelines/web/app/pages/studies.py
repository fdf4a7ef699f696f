"""Human-preference studies: their list, what the answers of one said, and the table of the answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse

from eval.study.records import TABLE
from eval.study.results import MIN_PARTICIPANTS
from pipelines.inspection.studies import NEWEST, artifact_of, has_more, listed, study_view
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page

router = APIRouter()
MOST = 1000  # studies of one page


@router.get("/evaluation/studies")
def studies(request: Request, ledger: LedgerDep, newest: Annotated[int, Query(ge=1, le=MOST)] = NEWEST) -> HTMLResponse:
    return page(
        request, "studies", here="evaluation", studies=listed(ledger, newest), newest=newest, most=MOST,
        more=has_more(ledger, newest),
    )  # fmt: skip


@router.get("/evaluation/studies/{artifact_id}")
def study(request: Request, ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str) -> HTMLResponse:
    """`artifact_id`: of results, as `m4v study results` tells it."""
    found = study_view(ledger, workspace.cache, artifact_id)
    return page(request, "study", here="evaluation", found=found, csv=TABLE, min_participants=MIN_PARTICIPANTS)


@router.get(f"/evaluation/studies/{{artifact_id}}/{TABLE}")
def answers(ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str) -> FileResponse:
    _, artifact = artifact_of(ledger, workspace.cache, artifact_id)
    return FileResponse(artifact.path(TABLE), media_type="text/csv")
