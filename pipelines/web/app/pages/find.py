"""Finding anything by its id, and where `/` leads."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from pipelines.ledger import ArtifactRow, AttemptRow, PipelineRunRow, RunRow
from pipelines.web.app.site import LedgerDep

router = APIRouter()


@router.get("/")
def start() -> RedirectResponse:
    return RedirectResponse("/runs", 307)


@router.get("/find")
def find(ledger: LedgerDep, id: str = "") -> RedirectResponse:
    """To the page of whatever has this id, or one that begins so."""
    return RedirectResponse(address_of(ledger.resolve(id.strip())), 303)


def address_of(row: PipelineRunRow | RunRow | AttemptRow | ArtifactRow) -> str:
    """The page of a row of the ledger."""
    match row:
        case PipelineRunRow():
            return f"/runs/{row.pipeline_run_id}"
        case RunRow():
            return f"/stage-runs/{row.run_id}"
        case AttemptRow():
            return f"/attempts/{row.attempt_id}"
        case ArtifactRow():
            return f"/artifacts/{row.artifact_id}"
