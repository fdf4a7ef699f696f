"""Channels: what each names, its history, promotions that wait for approval, and the forms that move them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import GateRefused, InputError, M4VError
from pipelines.access import Role
from pipelines.channels import Outcome, approve, decline, gate_verdicts, promote, rollback
from pipelines.channels.promote import NOTHING
from pipelines.ledger import ChannelMoved, ChannelRow, Ledger, RequestStatus
from pipelines.web.app.actions import Action, begin_action, may
from pipelines.web.app.failures import status_of
from pipelines.web.app.site import LedgerDep, SiteDep, site_of
from pipelines.web.app.views import page

router = APIRouter()
_OFFERED = 50  # newest checkpoints offered for promotion
_CONFLICT = 409
_DONE = {
    "promoted": "The channel names the checkpoint now.",
    "waiting": "The promotion waits for approval.",
    "unchanged": "The channel named that checkpoint already.",
    "approved": "Your approval is recorded.",
    "declined": "The request is closed.",
    "rolled-back": "The channel names the earlier checkpoint again.",
}


@router.get("/channels")
def listing(request: Request, ledger: LedgerDep, site: SiteDep) -> HTMLResponse:
    """Every channel with what it names now, and what waits for approval."""
    now: dict[str, ChannelRow] = {}
    for row in ledger.channel_history():
        if row.name not in now or row.seq > now[row.name].seq:
            now[row.name] = row
    waiting = ledger.promotion_requests(status=RequestStatus.PENDING, limit=None)
    names = sorted({*now, *(r.channel for r in waiting), *(n for n in site.settings.channels if n != "*")})
    return page(
        request, "channels", here="channels", names=names, now=now, waiting=waiting, policies=site.settings.policy,
        can_promote=may(request, Role.OPERATOR), can_approve=may(request, Role.APPROVER), checkpoints=_offered(ledger),
    )  # fmt: skip


@router.get("/channels/{name}")
def channel(request: Request, name: str, done: str = "") -> HTMLResponse:
    """One channel with its history; `done` says what an action has just done."""
    site = site_of(request)
    known = site.reading.channel(name) or name in site.settings.channels
    if not known and not site.reading.promotion_requests(channel=name, limit=1):
        raise InputError("there is no such channel", value=name, next_step="look on the page Channels")
    return _channel_page(request, name, done=_DONE.get(done, ""))


@router.post("/channels")
async def begin_channel(request: Request) -> Response:
    """Promotion to a channel that may not be there yet: its name comes with the form."""
    action = await begin_action(request)
    return await _promote(request, action, action.text("channel"))


@router.post("/channels/{name}/promote")
async def promotion(request: Request, name: str) -> Response:
    return await _promote(request, await begin_action(request), name)


@router.post("/channels/{name}/rollback")
async def rolling_back(request: Request, name: str) -> Response:
    action = await begin_action(request)

    def move() -> str:
        rollback(
            action.site.ledger, action.site.settings, action.actor, name, to=action.text("to") or None,
            reason=action.text("reason"), expect=action.text("expect") or None,
        )  # fmt: skip
        return "rolled-back"

    return await _acted(request, action, name, move)


@router.post("/promotions/{request_id}/{decision}")
async def decision(request: Request, request_id: str, decision: str) -> Response:
    """`decision` is approve or decline."""
    action = await begin_action(request)
    ledger = action.site.ledger
    asked = await action.do(lambda: ledger.promotion_request(request_id))

    def decide() -> str:
        comment = action.text("comment")
        if decision == "approve":
            approve(ledger, action.site.settings, action.actor, asked.request_id, comment)
            return "approved"
        decline(ledger, action.actor, asked.request_id, comment)
        return "declined"

    return await _acted(request, action, asked.channel, decide)


async def _promote(request: Request, action: Action, name: str) -> Response:
    def move() -> str:
        made = promote(
            action.site.ledger, action.site.settings, action.actor, action.text("checkpoint"), name,
            reason=action.text("reason"), override=action.text("override") or None,
            expect=action.text("expect") or None,
        )  # fmt: skip
        return {Outcome.PROMOTED: "promoted", Outcome.WAITING: "waiting"}.get(made.outcome, "unchanged")

    return await _acted(request, action, name, move)


async def _acted(request: Request, action: Action, name: str, what: Callable[[], str]) -> Response:
    """Back to the channel's page with what was done, or with why it was not."""
    try:
        done = await action.do(what)
    except M4VError as error:
        status = _CONFLICT if isinstance(error, GateRefused | ChannelMoved) else status_of(error)
        show = partial(_channel_page, request, name, problem=error, form=action.form, status=status)
        return await action.do(show)
    return RedirectResponse(f"/channels/{name}?done={done}", 303)


def _channel_page(
    request: Request,
    name: str,
    *,
    done: str = "",
    problem: M4VError | None = None,
    form: object = None,
    status: int = 200,
) -> HTMLResponse:
    site = site_of(request)
    ledger, policy = site.reading, site.settings.policy(name)
    history = ledger.channel_history(name)
    requests = ledger.promotion_requests(channel=name, limit=_OFFERED)
    return page(
        request, "channel", here="channels", status=status, name=name, history=history, policy=policy, problem=problem,
        done=done, form=form or {}, waiting=[r for r in requests if r.status is RequestStatus.PENDING],
        closed=[r for r in requests if r.status is not RequestStatus.PENDING], nothing=NOTHING,
        verdicts=gate_verdicts(ledger, history[0].artifact_id) if history else [], checkpoints=_offered(ledger),
        can_promote=may(request, policy.promote), can_override=may(request, policy.override),
        can_approve=may(request, Role.APPROVER),
    )  # fmt: skip


def _offered(ledger: Ledger) -> list[tuple[str, str]]:
    """Newest checkpoints: id, and what to call it."""
    rows = ledger.artifacts(kind=ArtifactKind.CHECKPOINT, limit=_OFFERED)
    return [(row.artifact_id, f"{row.summary.get('stage', 'checkpoint')} {row.artifact_id[:12]}") for row in rows]
