"""For machines: is the server well, and its figures."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from m4v.core.errors import M4VError
from pipelines.web.app.site import LedgerDep

router = APIRouter()


@router.get("/healthz")
def healthz(ledger: LedgerDep) -> PlainTextResponse:
    """200 when the ledger answers, else 503."""
    try:
        ledger.pipeline_runs(limit=1)
    except M4VError as error:
        return PlainTextResponse(f"{error.what}\n", 503)
    return PlainTextResponse("ok\n")
