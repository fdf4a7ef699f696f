"""Work that an action began: what it says, until it has ended."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from pipelines.web.app.site import SiteDep
from pipelines.web.app.views import fragment, page

router = APIRouter()
_NOTHING = 204


@router.get("/tasks/{task_id}")
def show(request: Request, site: SiteDep, task_id: str) -> HTMLResponse:
    task = site.tasks.get(task_id)
    return page(request, "task", title=task.name.capitalize(), task=task)


@router.get("/tasks/{task_id}/live")
def live(site: SiteDep, task_id: str, seen: int = 0) -> Response:
    """The part that changes; 204 while nothing was said and it runs on."""
    task = site.tasks.get(task_id)
    if task.is_live and len(task.lines) == seen:
        return Response(status_code=_NOTHING)
    return HTMLResponse(fragment("task_live", task=task))
