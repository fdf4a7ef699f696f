"""Clips: search, the page of one, its media, and the impact of taking some down."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.impact import impact
from pipelines.inspection.curated import CuratedClip, clip_tables, curated_clip, media_file, tables_with, with_words
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.membership import ClipFacts, ClipSelector, parse_selector
from pipelines.web.app.impact_view import impact_view
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.takedown_form import terms_of
from pipelines.web.app.views import page
from pipelines.workspace import Workspace

router = APIRouter()
SHOWN = 100
_TABLES = 5  # newest of each kind on the page without a search
By = Literal["", "clip", "source", "url", "sha256", "phash", "words"]
_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska", ".mov": "video/quicktime",
          ".avi": "video/x-msvideo", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png",
          ".webp": "image/webp", ".gif": "image/gif"}  # fmt: skip


@router.get("/clips")
def search(
    request: Request,
    ledger: LedgerDep,
    workspace: WorkspaceDep,
    q: Annotated[str, Query(max_length=500)] = "",
    by: By = "",
    shown: Annotated[int, Query(ge=1, le=5000)] = SHOWN,
) -> HTMLResponse:
    """`q` is an id or its beginning, a source, a URL or a hash; `by` says which, or `words` of captions."""
    wanted, problem, indexed, captioned = q.strip(), None, [], []
    if wanted and by != "words":
        try:
            indexed = ledger.find_clips(parse_selector([f"{by}:{wanted}" if by else wanted]), of_source=shown + 1)
        except InputError as error:
            problem = error
    if wanted and (by == "words" or (not by and not indexed)):
        captioned = with_words(clip_tables(ledger, workspace.cache), wanted, shown + 1)
    more = len(indexed) > shown and any(f"source:{c.source}" in c.matched_by for c in indexed)  # a whole one is cut
    return page(
        request, "clips", here="clips", q=wanted, by=by, problem=problem, indexed=indexed, captioned=captioned,
        shown=shown, more=more, tables=[] if wanted else _tables(ledger),
    )  # fmt: skip


def _tables(ledger: Ledger) -> list[ArtifactRow]:
    """The newest clip tables and dataset versions, to begin with."""
    kinds = (ArtifactKind.CLIPS, ArtifactKind.DATASET)
    rows = [row for kind in kinds for row in ledger.artifacts(kind=kind, limit=_TABLES)]
    return sorted(rows, key=lambda row: row.recorded_at, reverse=True)


@router.get("/clips/{clip_id}")
def clip(request: Request, clip_id: str, ledger: LedgerDep, workspace: WorkspaceDep) -> HTMLResponse:
    """Everything that is known of one clip, and what it touched."""
    facts = _one(ledger, clip_id)
    reach = impact(ledger, ClipSelector(clips=(facts.clip_id,)))
    held = ledger.artifacts_with([facts.clip_id])
    holders = [
        h for h in reach.holders if h.artifact_id in held or (h.kind == "source" and facts.clip_id in h.clip_ids)
    ]
    curated = _curated(ledger, workspace, facts.clip_id)
    return page(
        request, "clip", here="clips", clip=facts, curated=curated, reach=reach, holders=holders,
        rows={h.artifact_id: ledger.artifact(h.artifact_id, h.kind) for h in holders},
        others=[c for c in reach.clips if c.clip_id != facts.clip_id],
    )  # fmt: skip


@router.get("/clips/{clip_id}/media")
def media(clip_id: str, ledger: LedgerDep, workspace: WorkspaceDep) -> FileResponse:
    """The file that the clip was cut from; answers range requests."""
    curated = _curated(ledger, workspace, _one(ledger, clip_id).clip_id)
    if curated is None:
        raise InputError("no clip table of the store holds this clip", value=clip_id)
    path = media_file(ledger, curated, workspace.cache)
    kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    return FileResponse(path, media_type=kind)


@router.get("/impact")
def impact_page(
    request: Request, ledger: LedgerDep, q: Annotated[list[str] | None, Query(max_length=100)] = None
) -> HTMLResponse:
    """What taking down the clips that the terms `q` name would concern; one term a line."""
    terms = [term for text in q or () for term in terms_of(text)]
    return impact_view(request, terms, impact(ledger, parse_selector(terms)) if terms else None)


def _one(ledger: Ledger, clip_id: str) -> ClipFacts:
    """The clip of this id or beginning; raises InputError when there is none or more than one."""
    found = [c for c in ledger.find_clips(parse_selector([f"clip:{clip_id}"])) if c.clip_id.startswith(clip_id)]
    if len(found) != 1:
        raise InputError("the clip index has no such clip", value=clip_id, next_step="search on the page Clips")
    return found[0]


def _curated(ledger: Ledger, workspace: Workspace, clip_id: str) -> CuratedClip | None:
    """The clip in a clip table that holds it and is still there."""
    return curated_clip(tables_with(ledger, workspace.cache, clip_id), clip_id)
