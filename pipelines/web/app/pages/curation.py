"""Curation funnel of a clip table: steps, yields, rejections, scores, clips; other thresholds can be tried."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from dataprep.curation.table import CLIPS
from m4v.core.artifacts import MANIFEST, ArtifactKind
from m4v.core.errors import InputError
from m4v.core.shard_index import INDEX
from pipelines.inspection.clip_table import KEPT
from pipelines.inspection.quarantine import held_items
from pipelines.inspection.targets import Target, beside, find_target
from pipelines.ledger import Ledger
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page
from pipelines.web.media import MediaLinks
from pipelines.web.preview import RECONSTRUCTIONS, gather_curation, gather_quarantine
from pipelines.web.sections import dataset
from pipelines.workspace import Workspace

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
    """`identity` is a clip table, a dataset made from one, or a run that made them; `set` are thresholds to try,
    `curate.filters.KEY=VALUE`."""
    named = find_target(workspace, ledger, identity, (ArtifactKind.CLIPS, ArtifactKind.DATASET))
    target = beside(workspace, ledger, named)[0] or _above(workspace, ledger, named)
    if target is None:
        raise InputError("the clip table that this dataset was made from is no longer in the store", value=named.id)
    withdrawal = ledger.withdrawal(target.id, ArtifactKind.CLIPS)
    if withdrawal is not None:
        shown = 0  # what it holds is not shown any more, only its counts
    media = MediaLinks(target.artifact.path(CLIPS).parent, f"/artifacts/{target.id}/files")
    held = held_items([target.artifact])
    tried = [text.strip() for text in set or () if text.strip()]
    return page(
        request, "curation", here="artifacts", named=target, dataset=_dataset(ledger, named), withdrawal=withdrawal,
        tried=tried, shown=shown, most=MOST, KEPT=KEPT, quarantine=gather_quarantine(held),
        curation=gather_curation(target, media, shown, held, tried),
    )  # fmt: skip


def _above(workspace: Workspace, ledger: Ledger, named: Target) -> Target | None:
    """The clip table at the root of a dataset version that was made from other versions; None where it is gone."""
    for row in ledger.lineage_up(named.id).artifacts.values():
        if row.kind == ArtifactKind.CLIPS:
            target = find_target(workspace, ledger, row.artifact_id, (ArtifactKind.CLIPS,))
            if target.artifact.storage.exists(MANIFEST):
                return target
    return None


def _dataset(ledger: Ledger, named: Target) -> dataset.Dataset | None:
    """Buckets and reconstructions, where a dataset was asked for; no reconstruction of a withdrawn one."""
    if named.artifact.kind != ArtifactKind.DATASET:
        return None
    videos = 0 if ledger.withdrawal(named.id, ArtifactKind.DATASET) is not None else RECONSTRUCTIONS
    links = MediaLinks(named.artifact.path(INDEX).parent, f"/artifacts/{named.id}/files")
    return dataset.gather(named.artifact, links, videos)
