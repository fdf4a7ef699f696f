"""`m4v channels list|promote|rollback` and `m4v runs approve`: which checkpoint a channel names, and who let it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from m4v.core.errors import ExitClass, InputError
from pipelines.access import Actor, command_actor
from pipelines.channels import Outcome, Promotion, approve, decline, gate_verdicts, promote, rollback
from pipelines.cli.output import Id, JsonOption, print_json, print_rows, short
from pipelines.cli.runs import runs
from pipelines.ledger import ChannelRow, Ledger, RequestRow, RequestStatus
from pipelines.settings import Settings, load_settings
from pipelines.workspace import Workspace

ExpectOption = Annotated[
    str | None, typer.Option(help="Move only if the channel names this artifact now (`none`: nothing yet).")
]
ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]
ChannelArgument = Annotated[str, typer.Argument(help="Name of a channel.")]
channels = typer.Typer(help="Channels: which checkpoint is promoted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(channels, name="channels")


def open_workspace() -> tuple[Ledger, Settings, Actor]:
    """The workspace's ledger and settings, and who runs this command."""
    workspace = Workspace.open()
    settings = load_settings(workspace)
    return Ledger.open(workspace.ledger_url), settings, command_actor(settings.access)


@channels.command("list")
def list_(
    channel: Annotated[str | None, typer.Argument(help="Only this channel, with its whole history.")] = None,
    json_: JsonOption = False,
) -> None:
    """List what every channel names and which promotions wait; of one channel its history, newest first."""
    ledger, settings, _ = open_workspace()
    with ledger:
        history = ledger.channel_history(channel)
        pending = ledger.promotion_requests(channel=channel, status=RequestStatus.PENDING, limit=None)
    if json_:
        print_json(channels_json(history, pending, settings))
        return
    if channel is None:
        _print_current(history)
    else:
        _print_history(history)
    if pending:
        print()
        _print_pending(pending)


def channels_json(
    history: Sequence[ChannelRow], pending: Sequence[RequestRow], settings: Settings
) -> list[dict[str, Any]]:
    """Each channel with its current entry, history (newest first), waiting requests and policy."""
    names = sorted({e.name for e in history} | {r.channel for r in pending})
    return [
        {
            "channel": name,
            "current": next((asdict(e) for e in history if e.name == name), None),
            "history": [asdict(e) for e in history if e.name == name],
            "pending": [request_json(r) for r in pending if r.channel == name],
            "policy": settings.policy(name).canonical(),
        }
        for name in names
    ]


def request_json(request: RequestRow) -> dict[str, Any]:
    return {**asdict(request), "approved_by": request.approved_by}


def _print_current(history: Sequence[ChannelRow]) -> None:
    newest = {entry.name: entry for entry in reversed(history)}
    rows = [newest[name] for name in sorted(newest)]
    print_rows(
        ("channel", "checkpoint", "entry", "since", "by", "how"),
        [(e.name, Id(e.artifact_id), e.seq, e.moved_at, e.moved_by, _how(e)) for e in rows],
        text=("how",),
    )


def _print_history(history: Sequence[ChannelRow]) -> None:
    print_rows(
        ("entry", "checkpoint", "at", "by", "how", "reason"),
        [(e.seq, Id(e.artifact_id), e.moved_at, e.moved_by, _how(e), e.reason) for e in history],
        text=("how", "reason"),
    )


def _how(entry: ChannelRow) -> str:
    facts = entry.facts
    if facts.get("action") == "rollback":
        return f"rollback to entry {facts['to']}"
    how = "override of the gate" if facts.get("override") else "gate passed" if facts.get("gate") else "promoted"
    return f"{how}, approved by {', '.join(facts['approved_by'])}" if facts.get("approved_by") else how


def _print_pending(pending: Sequence[RequestRow]) -> None:
    print_rows(
        ("request", "channel", "checkpoint", "asked by", "asked", "approvals"),
        [
            (r.request_id, r.channel, Id(r.artifact_id), " of ".join(r.askers), r.requested_at, _approvals(r))
            for r in pending
        ],
        title="waiting for approval (m4v runs approve REQUEST)",
    )  # fmt: skip


def _approvals(request: RequestRow) -> str:
    by = f" ({', '.join(request.approved_by)})" if request.approved_by else ""
    return f"{len(request.approved_by)} of {request.approvals_needed}{by}"


@channels.command("promote")
def promote_(
    checkpoint: Annotated[str, typer.Argument(help="Id of a checkpoint, or a unique prefix.")],
    to: Annotated[str, typer.Option(help="Name of the channel.")],
    reason: ReasonOption = "",
    override: Annotated[
        str | None, typer.Option(help="Promote although no gate passed, for this reason; takes the role for it.")
    ] = None,
    expect: ExpectOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a channel name a checkpoint whose gate passed. Exits 60 when the gate refused it, 50 when the promotion
    now waits for approvals."""
    ledger, settings, actor = open_workspace()
    with ledger:
        done = promote(ledger, settings, actor, checkpoint, to, reason=reason, override=override, expect=expect)
    if json_:
        print_json(promotion_json(done))
    else:
        print(describe(done, to))
    if done.outcome is Outcome.WAITING:
        raise typer.Exit(int(ExitClass.NEEDS_HUMAN))


def promotion_json(done: Promotion) -> dict[str, Any]:
    return {
        "outcome": str(done.outcome),
        "entry": asdict(done.entry) if done.entry else None,
        "request": request_json(done.request) if done.request else None,
        "gate": done.verdict.to_json() if done.verdict else None,
    }


def describe(done: Promotion, channel: str) -> str:
    """What became of a promotion, in one line."""
    if done.request is not None:
        waits = done.request.approvals_needed - len(done.request.approved_by)
        people = "person" if waits == 1 else "people"
        return (
            f"promotion to {channel} waits for {waits} more {people}: m4v runs approve {done.request.request_id} "
            f"(not {' or '.join(done.request.askers)})"
        )
    assert done.entry is not None
    if done.outcome is Outcome.UNCHANGED:
        return f"{channel} names {short(done.entry.artifact_id)} already (entry {done.entry.seq})"
    return f"{channel} names {short(done.entry.artifact_id)} now (entry {done.entry.seq})"


@channels.command("gates")
def gates(
    checkpoint: Annotated[str, typer.Argument(help="Id of a checkpoint, or a unique prefix.")],
    json_: JsonOption = False,
) -> None:
    """List every gate's verdict on a checkpoint, newest first, with the digests by which a channel's policy pins a
    gate (settings: channels: {CHANNEL: {gate: {rules: DIGEST, …}}})."""
    ledger, settings, _ = open_workspace()
    with ledger:
        verdicts = gate_verdicts(ledger, ledger.artifact(checkpoint).artifact_id)
    pinned = {name: policy.gate for name, policy in settings.channels.items() if policy.gate is not None}
    counts = [[name for name, pin in sorted(pinned.items()) if pin.accepts(v.gate)] for v in verdicts]
    if json_:
        print_json([
            {**v.to_json(), "at": v.at, "opens": names} for v, names in zip(verdicts, counts, strict=True)
        ])  # fmt: skip
        return
    suite = [name for name in ("vbench", "vbench_generate") if any(name in v.gate for v in verdicts)]
    columns = ("rules", "evaluate", "generate", *suite, "recipe")
    print_rows(
        ("at", "verdict", *columns, "counts for pinned channels", "why"),
        [
            (v.at, "passed" if v.passed else "refused", *(Id(v.gate.get(c, "")) for c in columns),
             ", ".join(names), "; ".join(v.reasons))
            for v, names in zip(verdicts, counts, strict=True)
        ],
        text=("why", "counts for pinned channels"),
    )  # fmt: skip


@channels.command("rollback")
def rollback_(
    channel: ChannelArgument,
    to: Annotated[str | None, typer.Option(help="Entry of the history: its number, or an artifact it named.")] = None,
    reason: ReasonOption = "",
    expect: ExpectOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a channel name what it named before, or what entry --to of its history named."""
    ledger, settings, actor = open_workspace()
    with ledger:
        entry = rollback(ledger, settings, actor, channel, to=to, reason=reason, expect=expect)
    if json_:
        print_json(asdict(entry))
        return
    print(f"{channel} names {short(entry.artifact_id)} again (entry {entry.seq}, as in entry {entry.facts['to']})")


@runs.command("approve")
def approve_(
    identity: Annotated[str, typer.Argument(help="Id of a promotion request, or of the pipeline run that waits.")],
    decline_it: Annotated[bool, typer.Option("--decline", help="Close the request instead.")] = False,
    comment: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    json_: JsonOption = False,
) -> None:
    """Approve a promotion that waits; the last approval it takes moves the channel."""
    ledger, settings, actor = open_workspace()
    with ledger:
        request_id = _request_of(ledger, identity)
        if decline_it:
            row = decline(ledger, actor, request_id, comment)
        else:
            row = approve(ledger, settings, actor, request_id, comment)
    if json_:
        print_json(request_json(row))
    elif row.status is RequestStatus.PENDING:
        print(f"{_approvals(row)} approvals; the promotion to {row.channel} still waits")
    else:
        print(f"promotion to {row.channel} is {row.status}" + (f": {row.note}" if row.note else ""))


def _request_of(ledger: Ledger, identity: str) -> str:
    """A request's id, also by the pipeline run that asked for it."""
    try:
        return ledger.promotion_request(identity).request_id
    except InputError as unknown:
        try:
            run = ledger.pipeline_run(identity)
        except InputError:
            raise unknown from None
    waiting = ledger.promotion_requests(pipeline_run_id=run.pipeline_run_id, status=RequestStatus.PENDING)
    if len(waiting) != 1:
        what = "more than one promotion of this run waits" if waiting else "no promotion of this run waits for approval"
        raise InputError(what, value=identity, next_step="m4v channels list names the requests")
    return waiting[0].request_id
