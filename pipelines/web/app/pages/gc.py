"""Garbage collection: what nothing needs any more, why everything else stays, and deleting it."""

from __future__ import annotations

import threading
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ConfigError, M4VError
from pipelines.access import Role, require
from pipelines.web.app.actions import Stale, begin_action, begin_task, check_confirmed, may
from pipelines.web.app.dry_run import ADDRESS, DryRun, delete, dry_run
from pipelines.web.app.failures import status_of
from pipelines.web.app.site import Site, site_of
from pipelines.web.app.views import page

router = APIRouter()
_LOOKING = threading.Lock()  # it looks at the whole store: one at a time
_SHOWN = 200
NAME = "garbage collection"


@router.get(ADDRESS)
def show(request: Request, kind: str = "") -> HTMLResponse:
    """The dry run; `kind`: only artifacts of it."""
    return _page(request, _look(site_of(request), kind))


@router.post(ADDRESS)
async def apply(request: Request) -> Response:
    """Delete what the dry run has shown, if that is still the same."""
    action = await begin_action(request)
    site = action.site
    require(action.actor, Role.ADMIN, "delete artifacts")
    found = await action.do(partial(_look, site, action.text("kind")))
    try:
        check_confirmed(action, found.digest, "what may go")
    except M4VError as error:
        return await action.do(partial(_page, request, found, error))
    retention, by = site.settings.retention, action.actor.name
    return await begin_task(
        action, NAME, lambda tell: delete(site.ledger, site.workspace, retention, found, by, tell)
    )  # fmt: skip


def _look(site: Site, kind: str) -> DryRun:
    if kind and kind not in set(ArtifactKind):
        raise ConfigError("there is no such kind", value=kind, next_step=f"one of {', '.join(ArtifactKind)}")
    with _LOOKING:
        return dry_run(site.reading, site.workspace, site.settings.retention, ArtifactKind(kind) if kind else None)


def _page(request: Request, found: DryRun, problem: M4VError | None = None) -> HTMLResponse:
    status = 200 if problem is None else 409 if isinstance(problem, Stale) else status_of(problem)
    return page(
        request, "gc", here="artifacts", status=status, found=found, retention=site_of(request).settings.retention,
        shown=_SHOWN, problem=problem, can_delete=may(request, Role.ADMIN), kinds=list(ArtifactKind),
    )  # fmt: skip
