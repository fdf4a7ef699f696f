"""Moving a channel: promotion behind gates and approvals, and rollback to an entry of its history."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from m4v.core.artifacts import ArtifactKind, verify
from m4v.core.errors import GateRefused, InputError
from m4v.core.storage import Storage
from pipelines.access import Actor, Role, require
from pipelines.channels.gates import Verdict, gate_verdicts
from pipelines.channels.regression import Regression, regression
from pipelines.ledger import ArtifactRow, ChannelMoved, ChannelRow, Ledger, RequestRow, RequestStatus
from pipelines.settings import ChannelPolicy, Settings

CHANNEL_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
NOTHING = "none"  # `expect` of a channel that names nothing yet


class Outcome(StrEnum):
    """Of a promotion: the channel moved, it waits for approvals, or it named that checkpoint already."""

    PROMOTED = "promoted"
    WAITING = "waiting"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Promotion:
    """`entry` is the channel's current one after it (None: none yet), `request` what waits for approval."""

    outcome: Outcome
    entry: ChannelRow | None
    request: RequestRow | None
    verdict: Verdict | None


def promote(
    ledger: Ledger,
    settings: Settings,
    actor: Actor,
    checkpoint: str,
    channel: str,
    *,
    reason: str = "",
    override: str | None = None,
    expect: str | None = None,
    pipeline_run_id: str | None = None,
) -> Promotion:
    """Make `channel` name a checkpoint (id or unique prefix) whose gate passed, or ask for the approvals it takes.

    `override`: the reason for which a gate that did not pass is passed over. `expect`: what the channel must name
    now, an artifact or `none`; by default whatever it names when this begins. Raises AccessDenied, GateRefused (with
    the reasons, also for one that is worse than what the channel names where its policy forbids that), ChannelMoved,
    Withdrawn, ArtifactDeleted, InputError for what is no checkpoint, and DataIntegrityError for one whose files are not
    whole.
    """
    policy = settings.policy(_channel(channel))
    require(actor, policy.promote, f"promote to {channel}")
    now = ledger.channel(channel)
    _check_expected(ledger, channel, now, expect)
    row = _checkpoint(ledger, checkpoint)
    verdict = _passed_gate(ledger, policy, actor, row, channel, override)
    if now is not None and now.artifact_id == row.artifact_id:
        return Promotion(Outcome.UNCHANGED, now, None, verdict)
    held = _held_up(ledger, policy, actor, row, now, channel, override)
    starter = ledger.begun_by(pipeline_run_id) if pipeline_run_id is not None else None
    facts = {
        "action": "promote", "role": actor.role, "override": override, "gate": verdict.to_json() if verdict else None,
        "regression": held.to_json() if held else None, "pipeline_run_id": pipeline_run_id, "started_by": starter,
    }  # fmt: skip
    why, before = reason or override or "", now.artifact_id if now else None
    if policy.approvals:
        request = ledger.request_promotion(
            channel, row.artifact_id, expected=before, approvals_needed=policy.approvals, requested_by=actor.name,
            reason=why, facts=facts, pipeline_run_id=pipeline_run_id,
        )  # fmt: skip
        return Promotion(Outcome.WAITING, now, request, verdict)
    entry = ledger.move_channel(
        channel, row.artifact_id, expected=before, moved_by=actor.name, reason=why, facts=facts
    )  # fmt: skip
    return Promotion(Outcome.PROMOTED, entry, None, verdict)


def approve(ledger: Ledger, settings: Settings, actor: Actor, request_id: str, comment: str = "") -> RequestRow:
    """Approve a request (id or unique prefix); the last approval that it takes moves the channel.

    Raises AccessDenied, GateRefused when its gate has a newer verdict that did not pass, and what
    `Ledger.decide_promotion` raises.
    """
    request = ledger.promotion_request(request_id)
    policy = settings.policy(request.channel)
    require(actor, Role.APPROVER, f"approve a promotion to {request.channel}")
    if request.status is RequestStatus.PENDING and request.facts.get("override") is None:
        row = ledger.artifact(request.artifact_id)
        _passed_gate(ledger, policy, actor, row, request.channel, None)
        _held_up(ledger, policy, actor, row, ledger.channel(request.channel), request.channel, None)
    return ledger.decide_promotion(
        request.request_id, actor=actor.name, role=actor.role, approve=True, comment=comment,
        approvals_needed=policy.approvals,
    )  # fmt: skip


def decline(ledger: Ledger, actor: Actor, request_id: str, comment: str = "") -> RequestRow:
    """Close a request without moving the channel; who asked, or started the run that asks, may do so too."""
    request = ledger.promotion_request(request_id)
    if actor.name not in request.askers:
        require(actor, Role.APPROVER, f"decline a promotion to {request.channel}")
    return ledger.decide_promotion(
        request.request_id, actor=actor.name, role=actor.role, approve=False, comment=comment
    )  # fmt: skip


def rollback(
    ledger: Ledger,
    settings: Settings,
    actor: Actor,
    channel: str,
    *,
    to: str | None = None,
    reason: str = "",
    expect: str | None = None,
) -> ChannelRow:
    """Make `channel` name again what an earlier entry named: the one before the current one's origin, or `to` (an
    entry's number, or an artifact's id or prefix). It was let through once, so neither gate nor approvals are asked.

    Raises AccessDenied, ChannelMoved, InputError when there is no such entry, and Withdrawn or ArtifactDeleted.
    """
    policy = settings.policy(_channel(channel))
    require(actor, policy.promote, f"roll back {channel}")
    history = ledger.channel_history(channel)
    if not history:
        raise InputError("the channel names nothing yet", value=channel, next_step="m4v channels list")
    now = history[0]
    _check_expected(ledger, channel, now, expect)
    target = _entry(history, to) if to is not None else _before(history)
    if target.artifact_id == now.artifact_id:
        raise InputError(f"channel {channel} names that already", value=target.artifact_id)
    _whole(ledger.artifact(target.artifact_id, target.kind))
    facts = {"action": "rollback", "role": actor.role, "to": target.seq, "gate": target.facts.get("gate")}
    return ledger.move_channel(
        channel,
        target.artifact_id,
        expected=now.artifact_id,
        moved_by=actor.name,
        reason=reason or f"rollback to entry {target.seq}",
        facts=facts,
    )


def _channel(name: str) -> str:
    if CHANNEL_NAME.fullmatch(name) is None:
        raise InputError(
            "this is no name of a channel", value=name, next_step="use small letters, digits, and . _ - after the first"
        )
    return name


def _checkpoint(ledger: Ledger, given: str) -> ArtifactRow:
    row = ledger.artifact(given)
    if row.kind is not ArtifactKind.CHECKPOINT:
        raise InputError(
            f"channels name checkpoints; this is of kind {row.kind}", value=row.artifact_id,
            next_step="m4v artifacts list --kind checkpoint",
        )  # fmt: skip
    if row.deletion is None:
        _whole(row)  # of a deleted one the ledger says so, with the date
    return row


def _whole(row: ArtifactRow) -> None:
    if row.deletion is None:
        verify(Storage(row.uri), row.artifact_id, deep=False)


def _passed_gate(
    ledger: Ledger, policy: ChannelPolicy, actor: Actor, row: ArtifactRow, channel: str, override: str | None
) -> Verdict | None:
    """The newest verdict of a gate that the policy takes; raises GateRefused unless it passed or an actor who may
    passes over it with a reason."""
    every = gate_verdicts(ledger, row.artifact_id)
    verdicts = [v for v in every if policy.gate is None or policy.gate.accepts(v.gate)]
    verdict = verdicts[0] if verdicts else None
    if verdict is not None and verdict.passed:
        return verdict
    if override is not None:
        require(actor, policy.override, f"promote to {channel} against the gate")
        if not override.strip():
            raise InputError("an override needs a reason", value=override, next_step='--override "why"')
        return verdict
    step = f'--override "why" by {_article(policy.override)} {policy.override}, or a checkpoint whose gate passed'
    if verdict is None:
        told = "no gate has judged this checkpoint"
        if every:
            told = f"the gate that channel {channel} is pinned to has not judged this checkpoint, only others have"
            step = f"m4v channels gates {row.artifact_id[:12]} lists them; {step}"
        raise GateRefused(told, value=row.artifact_id, next_step=step)
    why = "; ".join(verdict.reasons) or "its rules do not hold"
    raise GateRefused(f"the gate refused this checkpoint: {why}", value=row.artifact_id, next_step=step)


def _held_up(
    ledger: Ledger,
    policy: ChannelPolicy,
    actor: Actor,
    row: ArtifactRow,
    now: ChannelRow | None,
    channel: str,
    override: str | None,
) -> Regression | None:
    """How the checkpoint stands against what the channel names, where its policy asks for that and it names something
    else; raises GateRefused when it fell, unless an actor who may passes over it with a reason."""
    if policy.non_regression is None or now is None or now.artifact_id == row.artifact_id:
        return None
    found = regression(ledger, policy.non_regression, row.artifact_id, now.artifact_id)
    if found.passed:
        return found
    if override is None:
        raise GateRefused(
            f"worse than what channel {channel} names: {'; '.join(found.reasons)}", value=row.artifact_id,
            next_step=f'--override "why" by {_article(policy.override)} {policy.override}, or one that holds up',
        )  # fmt: skip
    require(actor, policy.override, f"promote to {channel} against its rule of non-regression")
    if not override.strip():
        raise InputError("an override needs a reason", value=override, next_step='--override "why"')
    return found


def _article(role: Role) -> str:
    return "a" if role is Role.VIEWER else "an"


def _check_expected(ledger: Ledger, channel: str, now: ChannelRow | None, expect: str | None) -> None:
    if expect is None:
        return
    wanted = None if expect == NOTHING else ledger.artifact(expect).artifact_id
    found = now.artifact_id if now else None
    if found != wanted:
        raise ChannelMoved(
            f"channel {channel} names {'another artifact' if found else 'nothing yet'}, not what --expect says",
            value=found, next_step="m4v channels list, then decide again",
        )  # fmt: skip


def _entry(history: Sequence[ChannelRow], to: str) -> ChannelRow:
    """By its number, else the newest that names the artifact."""
    if to.isdigit() and len(to) < 8:
        found = [entry for entry in history if entry.seq == int(to)]
    else:
        found = [entry for entry in history if entry.artifact_id.startswith(to)]
    if not found or len({entry.artifact_id for entry in found}) > 1:
        what = "more than one artifact of the channel's history begins so" if found else "the channel has no such entry"
        raise InputError(what, value=to, where=history[0].name, next_step=f"m4v channels list {history[0].name}")
    return found[0]


def _before(history: Sequence[ChannelRow]) -> ChannelRow:
    """The entry before the one that the current entry stands for: after a rollback, that is further back."""
    by_seq = {entry.seq: entry for entry in history}
    origin = history[0]
    while "to" in origin.facts:
        origin = by_seq[int(origin.facts["to"])]
    earlier = [e for e in history if e.seq < origin.seq and e.artifact_id != origin.artifact_id]
    if not earlier:
        raise InputError(
            "the channel has no earlier entry to go back to", value=history[0].name,
            next_step=f"m4v channels list {history[0].name}",
        )  # fmt: skip
    return _resolve(earlier[0], by_seq)


def _resolve(entry: ChannelRow, by_seq: dict[int, ChannelRow]) -> ChannelRow:
    while "to" in entry.facts:
        entry = by_seq[int(entry.facts["to"])]
    return entry
