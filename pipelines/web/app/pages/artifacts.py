"""Artifacts: the list, the page of one with its lineage, and the steps by which the lineage grows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.errors import ConfigError, M4VError
from m4v.core.storage import Storage
from pipelines.ledger.neighbours import Direction
from pipelines.web.app.artifact_media import gallery
from pipelines.web.app.artifact_view import artifact_view
from pipelines.web.app.lineage_view import first_graph, one_step, tree
from pipelines.web.app.run_list import PAGE_ROWS
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import fragment, page

router = APIRouter()
Text = Annotated[str, Query(max_length=200)]
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
MEDIA_PAGE = 24


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
        chosen={"kind": kind, "q": q},
    )  # fmt: skip


def _place(cursor: str) -> tuple[str, str] | None:
    identity, _, kind = cursor.partition(".")
    return (identity, kind) if cursor else None


@router.get("/artifacts/{artifact_id}")
def show(
    request: Request, ledger: LedgerDep, workspace: WorkspaceDep, artifact_id: str, kind: str | None = None,
    first: Offset = 0,
) -> HTMLResponse:  # fmt: skip
    """An artifact: summary, files, who made and read it, its lineage. `first`: where the table of files begins."""
    view = artifact_view(ledger, ledger.artifact(artifact_id, kind), workspace.cache, first)
    row = view.row
    up, down = (tree(ledger, row.artifact_id, direction) for direction in (Direction.UP, Direction.DOWN))
    title = f"{row.kind} {row.artifact_id[:12]}"
    return page(request, "artifact", here="artifacts", title=title, view=view, row=row, up=up, down=down)


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
