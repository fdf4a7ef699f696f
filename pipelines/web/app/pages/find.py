"""Finding anything by its id, and where `/` leads."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from m4v.core.errors import InputError
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PipelineRunRow, RunRow
from pipelines.membership import parse_selector
from pipelines.web.app.site import LedgerDep

router = APIRouter()


@router.get("/")
def start() -> RedirectResponse:
    return RedirectResponse("/runs", 307)


@router.get("/find")
def find(ledger: LedgerDep, id: str = "") -> RedirectResponse:
    """To the page of whatever has this id, or one that begins so; clips and takedown cases as well."""
    given = id.strip()
    try:
        return RedirectResponse(address_of(ledger.resolve(given)), 303)
    except InputError:
        elsewhere = _case(ledger, given) or _clip(ledger, given)
        if elsewhere is None:
            raise
        return RedirectResponse(elsewhere, 303)


def _case(ledger: Ledger, given: str) -> str | None:
    try:
        return f"/takedowns/{ledger.takedown(given).takedown_id}"
    except InputError:
        return None


def _clip(ledger: Ledger, given: str) -> str | None:
    try:
        found = ledger.find_clips(parse_selector([f"clip:{given}"]), missing_ok=True)
    except InputError:  # it is no clip's id, or the beginning of many
        return None
    return f"/clips/{next(c.clip_id for c in found if c.clip_id.startswith(given.lower()))}" if found else None


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
