"""Artifacts: the list, the page of one with its lineage, and the steps by which the lineage grows."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.errors import ConfigError, M4VError
from m4v.core.storage import Storage
from pipelines.access import Role, require
from pipelines.ledger.neighbours import Direction
from pipelines.web.app.actions import begin_action, may
from pipelines.web.app.artifact_media import gallery
from pipelines.web.app.artifact_view import artifact_view
from pipelines.web.app.failures import status_of
from pipelines.web.app.lineage_view import first_graph, one_step, tree
from pipelines.web.app.run_list import PAGE_ROWS
from pipelines.web.app.site import LedgerDep, WorkspaceDep, site_of
from pipelines.web.app.views import fragment, page

router = APIRouter()
Text = Annotated[str, Query(max_length=200)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
MEDIA_PAGE = 24
_DONE = {"pinned": "The artifact is pinned now.", "unpinned": "Its pins are released."}


@router.get("/artifacts")
def listing(
    request: Request, ledger: LedgerDep, kind: Text = "", q: Text = "", after: Text = "", before: Text = ""
) -> HTMLResponse:
    """Artifacts, newest first, a page at a time; `after` and `before` are `ID.KIND`."""
    if kind and kind not in set(ArtifactKind):
        raise ConfigError("there is no such kind", value=kind, next_step=f"one of {', '.join(ArtifactKind)}")
    found = ledger.list_artifacts(
        kind=kind or None, text=q.strip(), after=_place(after), before=_place(before), limit=PAGE_ROWS
    )
    return page(
        request, "artifacts", here="artifacts", title="Artifacts", found=found, kinds=ledger.kinds(),
        chosen={"kind": kind, "q": q}, pinned={p.artifact_id for p in ledger.pins()},
    )  # fmt: skip


def _place(cursor: str) -> tuple[str, str] | None:
    identity, _, kind = cursor.partition(".")
    return (identity, kind) if cursor else None


@router.get("/artifacts/{artifact_id}")
def show(
    request: Request, artifact_id: str, kind: str | None = None, first: Offset = 0, done: Text = ""
) -> HTMLResponse:
    """An artifact: summary, files, who made and read it, its lineage. `first`: where the table of files begins."""
    return _page(request, artifact_id, kind, first, done=_DONE.get(done, ""))


@router.post("/artifacts/{artifact_id}/pin")
async def pin(request: Request, artifact_id: str) -> Response:
    """Keep an artifact, and all it was made from, whatever retention says."""
    return await _keep(request, artifact_id, "pinned")


@router.post("/artifacts/{artifact_id}/unpin")
async def unpin(request: Request, artifact_id: str) -> Response:
    """Release every pin of an artifact."""
    return await _keep(request, artifact_id, "unpinned")


async def _keep(request: Request, artifact_id: str, done: str) -> Response:
    action = await begin_action(request)
    ledger, by = action.site.ledger, action.actor.name

    def keep() -> None:
        require(action.actor, Role.OPERATOR, "pin artifacts and release pins")
        found = ledger.artifact(artifact_id).artifact_id
        if done == "pinned":
            ledger.pin(found, by=by, reason=action.text("reason"))
        else:
            ledger.unpin(found, by=by)

    try:
        await action.do(keep)
    except M4VError as error:
        return await action.do(partial(_page, request, artifact_id, problem=error))
    return RedirectResponse(f"/artifacts/{artifact_id}?done={done}#keep", 303)


def _page(
    request: Request, artifact_id: str, kind: str | None = None, first: int = 0, *, done: str = "",
    problem: M4VError | None = None,
) -> HTMLResponse:  # fmt: skip
    site = site_of(request)
    ledger = site.reading
    view = artifact_view(ledger, ledger.artifact(artifact_id, kind), site.workspace.cache, first)
    row = view.row
    up, down = (tree(ledger, row.artifact_id, direction) for direction in (Direction.UP, Direction.DOWN))
    return page(
        request, "artifact", here="artifacts", title=f"{row.kind} {row.artifact_id[:12]}", view=view, row=row, up=up,
        down=down, done=done, problem=problem, can_pin=may(request, Role.OPERATOR),
        status=200 if problem is None else status_of(problem),
    )  # fmt: skip


@router.get("/artifacts/{artifact_id}/check")
def check(ledger: LedgerDep, artifact_id: str, kind: str | None = None) -> HTMLResponse:
    """Are all files there, in their sizes? Digests take as long as reading everything: the command does that."""
    row, problem = ledger.artifact(artifact_id, kind), ""
    try:
        verify(Storage(row.uri), row.artifact_id, deep=False)
    except M4VError as error:
        problem = error.message
    return HTMLResponse(fragment("artifact_check", row=row, problem=problem))


@router.get("/artifacts/{artifact_id}/media")
def media(
    request: Request, ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str, kind: str | None = None,
    first: Offset = 0,
) -> HTMLResponse:  # fmt: skip
    """The artifact's videos and pictures, a page at a time."""
    row = ledger.artifact(artifact_id, kind)
    found = gallery(row, workspace.cache, first, MEDIA_PAGE)
    title = f"Media of {row.kind} {row.artifact_id[:12]}"
    return page(request, "artifact_media", here="artifacts", title=title, row=row, found=found, first=first)


@router.get("/artifacts/{artifact_id}/graph")
def graph(ledger: LedgerDep, artifact_id: str) -> JSONResponse:
    """The graph that the page opens with."""
    return JSONResponse(first_graph(ledger, ledger.artifact(artifact_id).artifact_id).to_json())


@router.get("/lineage/step")
def step(ledger: LedgerDep, node: Text, direction: Direction, offset: Offset = 0) -> JSONResponse:
    """What lies next to an artifact or run, a bounded number of nodes."""
    return JSONResponse(one_step(ledger, node, direction, offset).to_json())


@router.get("/lineage/tree")
def branch(ledger: LedgerDep, node: Text, direction: Direction, offset: Offset = 0) -> HTMLResponse:
    """The same as a branch of the tree."""
    return HTMLResponse(fragment("lineage_branch", tree=tree(ledger, node, direction, offset)))
