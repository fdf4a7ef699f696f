"""Curation funnel of a clip table: steps, yields, rejections, scores, clips; other thresholds can be tried."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from dataprep.curation.table import CLIPS
from m4v.core.artifacts import ArtifactKind
from pipelines.inspection.clip_table import KEPT
from pipelines.inspection.quarantine import held_items
from pipelines.inspection.targets import find_target
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page
from pipelines.web.media import MediaLinks
from pipelines.web.preview import gather_curation, gather_quarantine

router = APIRouter()
SHOWN, MOST = 120, 2000  # clips on one page


@router.get("/curation/{identity}")
def curation(
    request: Request,
    identity: str,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    shown: Annotated[int, Query(ge=0, le=MOST)] = SHOWN,
    set: Annotated[list[str] | None, Query()] = None,
) -> HTMLResponse:
    """`identity` is a clip table or a run that made one; `set` are thresholds to try, `curate.filters.KEY=VALUE`."""
    target = find_target(workspace, ledger, identity, (ArtifactKind.CLIPS,))
    media = MediaLinks(target.artifact.path(CLIPS).parent, f"/artifacts/{target.id}/files")
    held = held_items([target.artifact])
    tried = [text.strip() for text in set or () if text.strip()]
    return page(
        request, "curation", here="artifacts", named=target, tried=tried, shown=shown, most=MOST, KEPT=KEPT,
        curation=gather_curation(target, media, shown, held, tried), quarantine=gather_quarantine(held),
    )  # fmt: skip
