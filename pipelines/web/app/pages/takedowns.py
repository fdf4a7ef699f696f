"""Takedown cases: the list, a case with its receipt, and the proof of the receipt."""

from __future__ import annotations

import threading

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from m4v.core.canonical import canonical_json
from m4v.core.errors import InfrastructureError
from pipelines.ledger import Ledger, TakedownRow
from pipelines.takedown.receipt import DIGEST, make_receipt, to_markdown
from pipelines.takedown.verify import verify_receipt
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.views import page

router = APIRouter()
_VERIFYING = threading.Lock()  # it hashes whole artifacts: one at a time
_CLIPS_SHOWN = 200


@router.get("/takedowns")
def listing(request: Request, ledger: LedgerDep) -> HTMLResponse:
    """Every case, newest first."""
    cases = list(reversed(ledger.takedowns()))
    rows = [
        {
            "case": case,
            "clips": len({c["clip_id"] for c in ledger.takedown_clips(case.takedown_id)}),
            "withdrawn": len(ledger.withdrawals(case.takedown_id)),
            "issued": bool(ledger.takedown_steps(case.takedown_id, "receipt")),
        }
        for case in cases
    ]
    return page(request, "takedowns", here="clips", rows=rows)


@router.get("/takedowns/{identity}")
def case_page(request: Request, identity: str, ledger: LedgerDep) -> HTMLResponse:
    """A case: what was asked, what was done step by step, and the receipt."""
    case = ledger.takedown(identity)
    receipt = make_receipt(ledger, case)
    issued = [step.item for step in ledger.takedown_steps(case.takedown_id, "receipt")]
    return page(
        request, "takedown", here="clips", case=case, receipt=receipt, steps=ledger.takedown_steps(case.takedown_id),
        issued=receipt[DIGEST] in issued, successors={r["artifact_id"]: r for r in receipt["replaced"]},
        clips=_each_once(receipt["clips"]), shown=_CLIPS_SHOWN,
    )  # fmt: skip


@router.get("/takedowns/{identity}/receipt.json")
def receipt_json(identity: str, ledger: LedgerDep) -> Response:
    """The receipt as canonical JSON, whose digest the ledger keeps."""
    case, receipt = _receipt(ledger, identity)
    return _download(canonical_json(receipt), "application/json", f"takedown-{case.takedown_id}.json")


@router.get("/takedowns/{identity}/receipt.md")
def receipt_markdown(identity: str, ledger: LedgerDep) -> Response:
    case, receipt = _receipt(ledger, identity)
    text = to_markdown(receipt).encode()
    return _download(text, "text/markdown; charset=utf-8", f"takedown-{case.takedown_id}.md")


@router.get("/takedowns/{identity}/verify")
def verification(request: Request, identity: str, ledger: LedgerDep, workspace: WorkspaceDep) -> HTMLResponse:
    """Every claim of the receipt, recomputed from ledger and store."""
    case, receipt = _receipt(ledger, identity)
    if not _VERIFYING.acquire(blocking=False):
        raise InfrastructureError("another receipt is being verified", next_step="try again in a while")
    try:
        checks = verify_receipt(ledger, workspace, receipt)
    finally:
        _VERIFYING.release()
    return page(request, "takedown_verify", here="clips", case=case, receipt=receipt, checks=checks)


def _receipt(ledger: Ledger, identity: str) -> tuple[TakedownRow, dict[str, object]]:
    case = ledger.takedown(identity)
    return case, make_receipt(ledger, case)


def _download(data: bytes, media_type: str, name: str) -> Response:
    return Response(data, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})


def _each_once(clips: list[dict[str, object]]) -> list[dict[str, object]]:
    return list({str(clip["clip_id"]): clip for clip in clips}.values())
