"""Files of artifacts: videos, pictures, reports, tables."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pipelines.web.app.site import LedgerDep
from pipelines.web.app.streams import send_file

router = APIRouter()


@router.api_route("/artifacts/{artifact_id}/files/{path:path}", methods=["GET", "HEAD"])
def file(request: Request, ledger: LedgerDep, artifact_id: str, path: str, kind: str | None = None) -> Response:
    """A file by its path in the manifest, whole or a byte range of it."""
    return send_file(request, ledger.artifact(artifact_id, kind), path)
