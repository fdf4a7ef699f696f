"""Stage runs, their attempts and logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse

from m4v.core.errors import InputError
from m4v.core.storage import Storage
from pipelines.ledger import Status
from pipelines.provenance import BlobStore
from pipelines.web.app.attempt_view import attempt_view
from pipelines.web.app.logs import log_piece
from pipelines.web.app.reproduction import of_stage_run
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.stage_view import stage_view
from pipelines.web.app.views import fragment, page

router = APIRouter()
Offset = Annotated[int | None, Query(ge=0)]
_TAIL_BYTES = 6000  # of the log on the page of a stage run
_DIFF_SHOWN = 200_000  # characters of a diff on its page


@router.get("/stage-runs/{run_id}")
def show(request: Request, ledger: LedgerDep, workspace: WorkspaceDep, run_id: str) -> HTMLResponse:
    """A stage run: what it was, what it made, how it went."""
    view = stage_view(ledger, ledger.run(run_id), workspace.cache)
    tail = log_piece(workspace, view.attempt, limit=_TAIL_BYTES) if view.attempt else None
    title = f"{view.node_id} {view.run.run_id}"
    reproduction = of_stage_run(ledger, view.run.run_id)
    return page(request, "stage_run", here="runs", title=title, view=view, tail=tail, reproduction=reproduction)


@router.get("/stage-runs/{run_id}/diff")
def diff(request: Request, ledger: LedgerDep, workspace: WorkspaceDep, run_id: str, raw: bool = False) -> Response:
    """The uncommitted changes of the code that ran."""
    view = stage_view(ledger, ledger.run(run_id), workspace.cache)
    if view.diff is None:
        raise InputError("no uncommitted changes were kept with this run", value=view.run.run_id)
    text = BlobStore(workspace.store_uri).get(view.diff).decode(errors="replace")
    if raw:
        return PlainTextResponse(text)
    lines = text[:_DIFF_SHOWN].splitlines()
    title = f"Uncommitted changes of {view.run.run_id}"
    return page(request, "diff", here="runs", title=title, view=view, lines=lines, cut=len(text) > _DIFF_SHOWN)


@router.get("/attempts/{attempt_id}")
def attempt(
    request: Request, ledger: LedgerDep, workspace: WorkspaceDep, attempt_id: str,
    before: Offset = None, after: Offset = None,
) -> HTMLResponse:  # fmt: skip
    """An attempt: what it was given, what it made, and a part of its log: the end, or what lies before or after an
    offset."""
    row = ledger.attempt(attempt_id)
    piece = log_piece(workspace, row, before=before, after=after)
    name = row.node_id or row.stage
    return page(
        request, "attempt", here="runs", title=f"Attempt {row.attempt_id} of {name}", row=row, name=name, piece=piece,
        view=attempt_view(ledger, workspace, row),
        is_live=row.status == Status.RUNNING and not piece.has_newer,
    )  # fmt: skip


@router.get("/attempts/{attempt_id}/tail")
def tail(ledger: LedgerDep, workspace: WorkspaceDep, attempt_id: str, after: Annotated[int, Query(ge=0)]) -> Response:
    """What the log has gained since offset `after`; 204 while that is nothing."""
    row = ledger.attempt(attempt_id)
    piece = log_piece(workspace, row, after=after)
    if not piece.text and row.status == Status.RUNNING:
        return Response(status_code=204)
    return HTMLResponse(fragment("log_tail", row=row, piece=piece, is_live=row.status == Status.RUNNING))


@router.get("/attempts/{attempt_id}/log")
def whole_log(ledger: LedgerDep, workspace: WorkspaceDep, attempt_id: str) -> Response:
    """The whole log as text, streamed."""
    row = ledger.attempt(attempt_id)
    piece = log_piece(workspace, row, limit=1)
    if piece.missing:
        raise InputError(piece.missing, value=row.attempt_id)
    folder, _, name = row.log_path.rpartition("/")
    return StreamingResponse(Storage(folder).chunks(name), media_type="text/plain")
