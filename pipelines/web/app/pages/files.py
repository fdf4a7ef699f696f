"""Files of artifacts: videos, pictures, reports, tables."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from m4v.core.errors import InputError
from pipelines.web.app.site import LedgerDep
from pipelines.web.app.streams import send_file

router = APIRouter()


@router.api_route("/artifacts/{artifact_id}/files/{path:path}", methods=["GET", "HEAD"])
def file(request: Request, ledger: LedgerDep, artifact_id: str, path: str, kind: str | None = None) -> Response:
    """A file by its path in the manifest, whole or a byte range of it."""
    row = ledger.artifact(artifact_id, kind)
    withdrawal = ledger.withdrawal(row.artifact_id, row.kind)
    if withdrawal is not None:
        raise InputError(
            "the artifact was withdrawn: its files are not shown", value=row.artifact_id,
            where=f"takedown {withdrawal.takedown_id}", next_step=f"m4v takedown show {withdrawal.takedown_id}",
        )  # fmt: skip
    return send_file(request, row, path)
