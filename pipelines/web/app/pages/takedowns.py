"""Takedown cases: the list, a case with its receipt, and the proof of the receipt."""

from __future__ import annotations

import threading
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from m4v.core.canonical import canonical_json
from m4v.core.errors import InfrastructureError, M4VError
from pipelines.access import Role, require
from pipelines.impact import impact
from pipelines.ledger import Ledger, TakedownRow
from pipelines.takedown.policy import may_delete
from pipelines.takedown.receipt import DIGEST, DUE, make_receipt, to_markdown
from pipelines.takedown.verify import verify_receipt
from pipelines.web.app.actions import begin_action, begin_task, check_confirmed, may
from pipelines.web.app.impact_view import impact_view
from pipelines.web.app.site import LedgerDep, WorkspaceDep
from pipelines.web.app.takedown_form import NAME, carry_out, policy_of, selector_of, shown_digest, take_up, terms_of
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


@router.post("/takedowns")
async def apply(request: Request) -> Response:
    """Take the clips down whose impact was shown, if it is still the same."""
    action = await begin_action(request)
    site = action.site
    require(action.actor, Role.APPROVER, "take clips down")
    selector = selector_of(action)
    reach = await action.do(lambda: impact(site.reading, selector))
    try:
        check_confirmed(action, shown_digest(reach), "what the takedown concerns")
        policy, reason = policy_of(action), action.text("reason")
        return await begin_task(
            action, NAME, lambda tell: carry_out(site, action.actor, selector, reason, policy, tell)
        )
    except M4VError as error:
        terms = terms_of(action.text("q"))
        return await action.do(partial(impact_view, request, terms, reach, problem=error, form=action.form))


@router.post("/takedowns/{identity}/continue")
async def take_up_again(request: Request, identity: str) -> Response:
    """Go on with a case that was not finished, or delete what is due now."""
    action = await begin_action(request)
    site = action.site
    require(action.actor, Role.APPROVER, "take clips down")
    case = await action.do(lambda: site.reading.takedown(identity))
    return await begin_task(action, NAME, lambda tell: take_up(site, action.actor, case, tell))


@router.get("/takedowns/{identity}")
def case_page(request: Request, identity: str, ledger: LedgerDep) -> HTMLResponse:
    """A case: what was asked, what was done step by step, and the receipt."""
    case = ledger.takedown(identity)
    receipt = make_receipt(ledger, case)
    issued = [step.item for step in ledger.takedown_steps(case.takedown_id, "receipt")]
    return page(
        request, "takedown", here="clips", case=case, receipt=receipt, steps=ledger.takedown_steps(case.takedown_id),
        issued=receipt[DIGEST] in issued, successors={r["artifact_id"]: r for r in receipt["replaced"]},
        clips=_each_once(receipt["clips"]), shown=_CLIPS_SHOWN, is_due=may_delete(receipt["policy"]),
        waits=receipt["deletion"].startswith(DUE), can_take_down=may(request, Role.APPROVER),
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
