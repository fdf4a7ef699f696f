"""What differs between two runs, and between two dataset versions or clip tables."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.errors import ConfigError
from pipelines.compare import compare_runs
from pipelines.inspection.targets import Target, beside, find_target
from pipelines.inspection.version_diff import compare_versions
from pipelines.ledger import Ledger
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page
from pipelines.workspace import Workspace

router = APIRouter()
PAIRS = 12  # of sample videos shown unless asked for more
Shown = Annotated[int, Query(ge=0, le=2000)]
_OFFERED = 50  # newest of each kind in the lists to choose from


@router.get("/compare")
def choose(request: Request, ledger: LedgerDep, a: str = "") -> HTMLResponse:
    """What can be compared; `a` is chosen already as the first."""
    versions = [*ledger.artifacts(kind=ArtifactKind.DATASET, limit=_OFFERED),
                *ledger.artifacts(kind=ArtifactKind.CLIPS, limit=_OFFERED)]  # fmt: skip
    return page(
        request,
        "compare",
        here="compare",
        chosen=a.strip(),
        runs=ledger.pipeline_runs(limit=_OFFERED),
        versions=versions,
    )


@router.get("/compare/runs")
def runs(
    request: Request, ledger: LedgerDep, workspace: WorkspaceDep, a: str = "", b: str = "", shown: Shown = PAIRS
) -> HTMLResponse:
    """Two pipeline runs, or two stage runs; an attempt or artifact stands for the run that made it."""
    _both(a, b)
    found = compare_runs(workspace, ledger, a.strip(), b.strip())
    return page(request, "compare_runs", here="compare", found=found, shown=shown)


@router.get("/compare/versions")
def versions(request: Request, ledger: LedgerDep, workspace: WorkspaceDep, a: str = "", b: str = "") -> HTMLResponse:
    """Two datasets, or two clip tables; a run stands for the one that it made."""
    _both(a, b)
    before, after = (_version(workspace, ledger, given.strip()) for given in (a, b))
    clips = [_clips(workspace, ledger, target) for target in (before, after)]
    diff = compare_versions(before, after, *clips)
    return page(request, "compare_versions", here="compare", diff=diff)


def _both(a: str, b: str) -> None:
    if not a.strip() or not b.strip():
        raise ConfigError("a comparison needs two ids", value=[a, b], next_step="choose two on the page Compare")


def _version(workspace: Workspace, ledger: Ledger, identity: str) -> Target:
    return find_target(workspace, ledger, identity, (ArtifactKind.DATASET, ArtifactKind.CLIPS))


def _clips(workspace: Workspace, ledger: Ledger, target: Target) -> Artifact | None:
    found = beside(workspace, ledger, target)[0]
    return found.artifact if found is not None else None
