"""Leaderboard: checkpoints by their scores, with intervals, gates and channels; two evaluations side by side."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from eval.records import STAND_IN
from eval.stages.gate import MIN_PROMPTS
from eval.vbench.published import FIGURES, published
from pipelines.inspection.leaderboard import CONFIDENCE, NEWEST, Board, Entry, Metric, leaderboard
from pipelines.inspection.side_by_side import side_by_side
from pipelines.web.app.artifact_media import address_of_file
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page

router = APIRouter()
MOST = 5000  # evaluations of one page
PAIRS = 12  # pairs of videos on one page
PUBLISHED = (*FIGURES, "motion_smoothness", "dynamic_degree", "aesthetic_quality", "imaging_quality")


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
        if sort in board.figures:
            return board.sorted_by(sort, order != "asc")
        metric = next((m for m in board.metrics if m.name == sort), None)
        return board.sorted_by(metric.name if metric else None, falling(metric) if metric else None)

    return page(
        request, "evaluation", here="evaluation", found=found, sort=sort, newest=newest, falling=falling,
        ordered=ordered, evaluations=[entry for board in found.boards for entry in board.entries],
        confidence=CONFIDENCE, min_prompts=MIN_PROMPTS,
        published=published(), published_columns=PUBLISHED,
    )  # fmt: skip


@router.get("/evaluation/compare")
def compare(
    request: Request,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    left: Annotated[str, Query(min_length=4, max_length=64)],
    right: Annotated[str, Query(min_length=4, max_length=64)],
    first: Annotated[int, Query(ge=0)] = 0,
) -> HTMLResponse:
    """`left`, `right`: ids of scores. Nothing is subtracted where more than the model differs."""
    found = side_by_side(ledger, workspace.cache, left, right, first=first, shown=PAIRS)
    return page(
        request, "evaluation_compare", here="evaluation", found=found, first=first, shown=PAIRS,
        confidence=CONFIDENCE, address=address_of_file, stand_in=STAND_IN,
    )  # fmt: skip
