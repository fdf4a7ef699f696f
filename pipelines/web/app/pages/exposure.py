"""Exposure of a checkpoint: what each stage of its line drew, and clip by clip how often and in which steps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from pipelines.exposure import ClipVerdict, clip_exposure, summarise
from pipelines.inspection.curated import dataset_clips
from pipelines.ledger import Ledger
from pipelines.membership import ClipSelector, parse_selector
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page
from pipelines.workspace import Workspace

router = APIRouter()
CLIPS = 50  # of one page
STEPS = 200  # listed of one clip and stage


@router.get("/exposure/{identity}")
def exposure(
    request: Request,
    identity: str,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    q: Annotated[str, Query(max_length=500)] = "",
    dataset: str = "",
    after: Annotated[str, Query(pattern="^[0-9a-f]{0,32}$")] = "",
) -> HTMLResponse:
    """The clips that the term `q` names, or those of a dataset of the line (by default the newest) from `after` on."""
    checkpoint = ledger.artifact(identity, ArtifactKind.CHECKPOINT)
    line = summarise(ledger, checkpoint.artifact_id)
    datasets = list(dict.fromkeys(stage.dataset_id for stage in line if stage.dataset_id))
    chosen = dataset if dataset in datasets else (datasets[0] if datasets else "")
    ids: list[str] = []
    if q.strip():
        verdicts = clip_exposure(ledger, checkpoint.artifact_id, parse_selector([q.strip()]), with_steps=True)
    else:
        ids = _clips(ledger, workspace, chosen, after) if chosen else []
        verdicts = _verdicts(ledger, checkpoint.artifact_id, ids)
    return page(
        request, "exposure", here="artifacts", checkpoint=checkpoint, line=line, datasets=datasets, chosen=chosen,
        verdicts=verdicts[: CLIPS * 4], found=len(verdicts), q=q.strip(), after=after, steps_shown=STEPS,
        following=ids[-1] if len(ids) == CLIPS else "",
    )  # fmt: skip


def _clips(ledger: Ledger, workspace: Workspace, dataset_id: str, after: str) -> list[str]:
    """None where the version's bytes are no longer in the store: the index in the ledger is asked clip by clip."""
    row = ledger.artifact(dataset_id, ArtifactKind.DATASET)
    artifact = Artifact(row.uri, row.artifact_id, row.kind, workspace.cache)
    return dataset_clips(artifact, after, CLIPS) if artifact.storage.exists(MANIFEST) else []


def _verdicts(ledger: Ledger, checkpoint: str, ids: list[str]) -> list[ClipVerdict]:
    """Of these clips alone: the selector also names those that overlap them."""
    if not ids:
        return []
    wanted = set(ids)
    found = clip_exposure(ledger, checkpoint, ClipSelector(clips=tuple(ids)), with_steps=True)
    return sorted((v for v in found if v.clip.clip_id in wanted), key=lambda v: v.clip.clip_id)
