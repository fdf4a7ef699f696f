"""Leaderboard: checkpoints by their scores, with intervals, gates and channels."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from eval.stages.gate import MIN_PROMPTS
from pipelines.inspection.leaderboard import CONFIDENCE, NEWEST, Board, Entry, Metric, leaderboard
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page

router = APIRouter()
MOST = 5000  # evaluations of one page


@router.get("/evaluation")
def evaluation(
    request: Request,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    sort: str | None = None,
    order: Literal["asc", "desc", ""] = "",
    newest: Annotated[int, Query(ge=1, le=MOST)] = NEWEST,
) -> HTMLResponse:
    """`sort` is a metric's name; without an `order` the better end comes first."""
    found = leaderboard(ledger, workspace.cache, newest=newest)

    def falling(metric: Metric) -> bool:
        return order == "desc" if order else metric.higher_is_better is not False

    def ordered(board: Board) -> tuple[Entry, ...]:
        metric = next((m for m in board.metrics if m.name == sort), None)
        return board.sorted_by(metric.name if metric else None, falling(metric) if metric else None)

    return page(
        request, "evaluation", here="evaluation", found=found, sort=sort, newest=newest, falling=falling,
        ordered=ordered, confidence=CONFIDENCE, min_prompts=MIN_PROMPTS,
    )  # fmt: skip
