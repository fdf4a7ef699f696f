"""Stages: what each is, and every execution of one over all runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from m4v.core.errors import ConfigError, InputError
from pipelines.ledger import Ledger, Status
from pipelines.web.app.site import LedgerDep
from pipelines.web.app.stage_history import MOST, SHOWN, is_declared, stage_history, stage_lines
from pipelines.web.app.views import page

router = APIRouter()
Text = Annotated[str, Query(max_length=200)]


@router.get("/stages")
def listing(request: Request, ledger: LedgerDep) -> HTMLResponse:
    """Every stage, with how it went of late."""
    return page(request, "stages", here="stages", title="Stages", lines=stage_lines(ledger))


@router.get("/stages/{stage}")
def show(
    request: Request, ledger: LedgerDep, stage: str, node: Text = "", recipe: Text = "", status: Text = "",
    shown: Annotated[int, Query(ge=1, le=MOST)] = SHOWN,
) -> HTMLResponse:  # fmt: skip
    """Every execution of a stage, newest first, and how its measures moved."""
    if status and status not in set(Status):
        raise ConfigError("there is no such state", value=status, next_step=f"one of {', '.join(Status)}")
    _check(ledger, stage)
    found = stage_history(
        ledger, stage, node=node, recipe=recipe, status=Status(status) if status else None, shown=shown
    )
    return page(
        request, "stage", here="stages", title=f"Stage {stage}", found=found, recipes=ledger.recipes(),
        statuses=list(Status), chosen={"node": node, "recipe": recipe, "status": status}, shown=shown,
    )  # fmt: skip


def _check(ledger: Ledger, stage: str) -> None:
    """Stages of other versions of this program are known by what they left in the ledger."""
    if not is_declared(stage) and not ledger.attempts(stage=stage, limit=1):
        raise InputError("there is no such stage", value=stage, next_step="look on the page Stages")
