"""Reward stages: their list, and one of them with the checkpoints before and after it side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from eval.records import STAND_IN
from pipelines.inspection.leaderboard import CONFIDENCE
from pipelines.inspection.reward_effect import NEWEST, RewardEffect, listed, reward_effect, reward_run
from pipelines.web.app.artifact_media import address_of_file
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page
from pipelines.web.charts import LineChart
from pipelines.web.sections.training import Change, loss_chart, other_charts
from training.reward.watch import DRIFT, FRAME_NAMES, HELD_OUT, PROBE_LOSS, REWARD, SEEDS

router = APIRouter()
MOST = 1000  # reward stages of one page
PAIRS = 12  # pairs of videos on one page
_SHOWN = (REWARD, *FRAME_NAMES, DRIFT, PROBE_LOSS, SEEDS)


@router.get("/evaluation/rewards")
def rewards(request: Request, ledger: LedgerDep, newest: Annotated[int, Query(ge=1, le=MOST)] = NEWEST) -> HTMLResponse:
    return page(request, "rewards", here="evaluation", stages=listed(ledger, newest), newest=newest)


@router.get("/evaluation/rewards/{run_id}")
def reward(
    request: Request,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    run_id: str,
    first: Annotated[int, Query(ge=0)] = 0,
) -> HTMLResponse:
    """`run_id`: of the reward stage, or a checkpoint or pipeline run of one, or the beginning of its id."""
    found = reward_effect(ledger, workspace.cache, reward_run(ledger, run_id), first=first, shown=PAIRS)
    return page(
        request, "reward", here="evaluation", found=found, charts=charts(found), first=first, shown=PAIRS,
        confidence=CONFIDENCE, address=address_of_file, stand_in=STAND_IN,
    )  # fmt: skip


def charts(found: RewardEffect) -> list[tuple[str, LineChart, Change]]:
    """Curves of what the watch looks at, the reward and its scores first."""
    kept = [
        {k: v for k, v in row.items() if k in ("step", *_SHOWN) or k.startswith(("score_", HELD_OUT))}
        for row in found.rows
    ]
    curves = sorted(other_charts("reward", kept), key=lambda curve: curve[0] != REWARD)
    loss = loss_chart("reward", found.rows) if found.rows else None
    verdict = next((v for v in found.verdicts if v.name == "loss"), None)
    if loss is not None and verdict is not None and verdict.start is not None and verdict.last is not None:
        curves.insert(1, ("loss", loss, Change(verdict.start, verdict.last)))
    return curves
