"""`m4v takedown`: what some clips touched, taking them down, the cases so far, and proving a receipt."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from m4v.core.config import parse
from m4v.core.errors import ExitClass, InputError
from m4v.core.storage import Storage
from pipelines.access import command_actor
from pipelines.cli.output import Id, JsonOption, print_facts, print_json, print_rows, short
from pipelines.impact import Impact, impact
from pipelines.keys import CODE_ROOT
from pipelines.launchers import LocalLauncher
from pipelines.ledger import Ledger, TakedownRow
from pipelines.membership import ClipSelector, parse_selector
from pipelines.membership.selector import DEFAULT_PHASH_BITS
from pipelines.recipe import Profile
from pipelines.settings import load_settings
from pipelines.takedown.apply import DRAIN_WAIT_S, Applied, TakedownRun
from pipelines.takedown.policy import Delete, Policy
from pipelines.takedown.receipt import FOLDER, to_markdown
from pipelines.takedown.retrain import Cure, retrain_plans
from pipelines.takedown.verify import verify_receipt
from pipelines.workspace import Workspace

takedown = typer.Typer(help="Take clips down, and prove it.", no_args_is_help=True)
Terms = Annotated[
    list[str],
    typer.Argument(help="Clip id or its beginning, SOURCE, SOURCE/SOURCE_ID, URL, sha256:HEX, phash:WORD-WORD…"),
]
BitsOption = Annotated[int, typer.Option("--phash-bits", help="Bits that frames may differ by from a phash: term.")]
CaseArgument = Annotated[str, typer.Argument(help="Id of a case or its beginning.")]


def register(app: typer.Typer) -> None:
    import pipelines.cli.takedown_finish  # noqa: F401 - adds finish

    app.add_typer(takedown, name="takedown")


@takedown.command("impact")
def impact_(terms: Terms, phash_bits: BitsOption = DEFAULT_PHASH_BITS, json_: JsonOption = False) -> None:
    """List every artifact, checkpoint, channel and sample set that the clips touched; changes nothing."""
    with _ledger() as ledger:
        found = impact(ledger, parse_selector(terms, phash_bits=phash_bits))
        withdrawn = {w.artifact_id: w.takedown_id for w in ledger.withdrawals()}
    if json_:
        print_json({**found.to_json(), "withdrawn": {i: withdrawn[i] for i in found.artifact_ids if i in withdrawn}})
        return
    _print_impact(found, withdrawn)
    if not withdrawn.keys() & set(found.artifact_ids):
        print(f"\nm4v takedown apply {' '.join(terms)} --reason TEXT   takes them down")


@takedown.command("apply")
def apply(
    terms: Terms,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    delete: Annotated[Delete, typer.Option(help="When bytes of withdrawn versions go.")] = Delete.AFTER_GRACE,
    grace_days: Annotated[float, typer.Option(min=0, help="Days until then, with after-grace.")] = 30.0,
    withdraw_checkpoints: Annotated[
        bool, typer.Option("--withdraw-checkpoints", help="Also checkpoints that saw the clips go out of use.")
    ] = False,
    drain_wait: Annotated[
        float, typer.Option(min=0, help="Seconds that running work may take to stop.")
    ] = DRAIN_WAIT_S,
    phash_bits: BitsOption = DEFAULT_PHASH_BITS,
    json_: JsonOption = False,
) -> None:
    """Take the clips down: record the case, drain what reads them, write versions without them, block their return,
    delete bytes by policy, issue a receipt. Killed at any moment, the same command goes on."""
    workspace = Workspace.open()
    selector = parse_selector(terms, phash_bits=phash_bits)
    with Ledger.open(workspace.ledger_url) as ledger:
        work = TakedownRun(
            ledger, workspace, _launcher(), command_actor(load_settings(workspace).access), drain_wait_s=drain_wait,
            tell=_tell,
        )  # fmt: skip
        policy = Policy(delete=delete, grace_days=grace_days, withdraw_checkpoints=withdraw_checkpoints)
        done = work.apply(selector, reason, policy)
    if json_:
        print_json(_applied_json(done))
    else:
        _print_applied(done)


@takedown.command("list")
def list_(json_: JsonOption = False) -> None:
    """List the cases, newest first."""
    with _ledger() as ledger:
        cases = [(row, _standing(ledger, row)) for row in reversed(ledger.takedowns())]
    if json_:
        print_json([{**asdict(row), **standing} for row, standing in cases])
        return
    print_rows(
        ["case", "asked by", "at", "clips", "withdrawn", "bytes", "reason"],
        [
            [row.takedown_id, row.requested_by, row.requested_at, s["clips"], s["withdrawn"], s["bytes"], row.reason]
            for row, s in cases
        ],
        text=("reason",),
    )


@takedown.command("show")
def show(case: CaseArgument, json_: JsonOption = False) -> None:
    """Show a case: its clips, what it withdrew, what stands in its place, and its receipts."""
    with _ledger() as ledger:
        row = ledger.takedown(case)
        standing = _standing(ledger, row)
        clips, withdrawn = ledger.takedown_clips(row.takedown_id), ledger.withdrawals(row.takedown_id)
        steps = ledger.takedown_steps(row.takedown_id)
    made = {s.item: s.facts for s in steps if s.step == "replaced"}
    if json_:
        print_json({
            **asdict(row), **standing, "blocked_clips": clips, "withdrawals": [asdict(w) for w in withdrawn],
            "steps": [asdict(s) for s in steps],
        })  # fmt: skip
        return
    print_facts({"case": row.takedown_id, "reason": row.reason, "asked by": row.requested_by, **standing})
    print()
    print_rows(
        ["withdrawn", "kind", "in its place"],
        [
            [Id(w.artifact_id), w.kind, Id(made.get(w.artifact_id, {}).get("successor") or "")]
            for w in withdrawn
        ],
    )  # fmt: skip
    for step in (s for s in steps if s.step == "receipt"):
        print(f"receipt {step.item[:12]}: m4v takedown receipt {row.takedown_id}")


@takedown.command("receipt")
def receipt(
    case: CaseArgument,
    markdown: Annotated[bool, typer.Option("--markdown", help="The readable form instead of JSON.")] = False,
) -> None:
    """Print the newest receipt of a case, as it was issued."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        row = ledger.takedown(case)
        issued = ledger.takedown_steps(row.takedown_id, "receipt")
    if not issued:
        raise InputError(
            "the case has no receipt yet", value=row.takedown_id, next_step="m4v takedown apply its selector again"
        )
    data = Storage(workspace.store_uri).read_bytes(f"{FOLDER}/{row.takedown_id}/{issued[-1].facts['name']}.json")
    sys.stdout.write(to_markdown(json.loads(data)) if markdown else data.decode() + "\n")


@takedown.command("verify")
def verify(
    path: Annotated[Path, typer.Argument(help="A receipt (JSON).")],
    json_: JsonOption = False,
) -> None:
    """Recompute every claim of a receipt from ledger and store; exit 20 when one does not hold."""
    workspace = Workspace.open()
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"receipt cannot be read: {error.strerror}", value=str(path)) from None
    except ValueError:
        raise InputError("receipt is no JSON", value=str(path)) from None
    if not isinstance(content, dict):
        raise InputError("this is no receipt of a takedown", value=str(path))
    with Ledger.open(workspace.ledger_url) as ledger:
        checks = verify_receipt(ledger, workspace, content)
    ok = all(check.ok for check in checks)
    if json_:
        print_json({"ok": ok, "checks": [check.to_json() for check in checks]})
    else:
        rows = [["holds" if c.ok else "FAILS", c.claim, "" if c.ok else c.detail] for c in checks]
        print_rows(["", "claim", "found"], rows, text=("claim", "found"))
    if not ok:
        raise typer.Exit(ExitClass.DATA_INTEGRITY)


@takedown.command("plan")
def plan(case: CaseArgument, json_: JsonOption = False) -> None:
    """The retrain plan of a case as it is now: which recipes, run again, cure what the clips touched."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        selector = parse(ClipSelector, ledger.takedown(case).selector, f"takedown {case}")
        cures = retrain_plans(ledger, _launcher(), impact(ledger, selector))
    if json_:
        print_json([cure.to_json() for cure in cures])
    else:
        _print_cures(cures)


def _ledger() -> Ledger:
    return Ledger.open(Workspace.open().ledger_url)


def _launcher() -> LocalLauncher:
    """New versions are made on this machine, under the lock file of the shipped profile."""
    lock_file = Profile().lock_file
    return LocalLauncher(None if lock_file is None else str(CODE_ROOT / lock_file))


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _standing(ledger: Ledger, row: TakedownRow) -> dict[str, Any]:
    steps = ledger.takedown_steps(row.takedown_id)
    policy = next((s.facts["policy"] for s in steps if s.step == "opened"), {"delete": "keep", "delete_from": None})
    deleted = any(s.step == "deletion" for s in steps)
    due = "kept" if policy["delete_from"] is None else f"due from {policy['delete_from']}"
    return {
        "clips": len({c["clip_id"] for c in ledger.takedown_clips(row.takedown_id)}),
        "withdrawn": len(ledger.withdrawals(row.takedown_id)),
        "bytes": "deleted" if deleted else due,
        "receipts": [s.item for s in steps if s.step == "receipt"],
    }


def _print_impact(found: Impact, withdrawn: dict[str, str]) -> None:
    print_rows(
        ["clip", "source", "id in it", "from s", "to s", "matched by"],
        [[Id(c.clip_id), c.source, c.source_id, c.start_us / 1e6, c.end_us / 1e6, c.why] for c in found.clips],
        text=("matched by",),
    )
    print()
    rows: list[list[object]] = [
        [Id(h.artifact_id), h.kind, f"holds {len(h.clip_ids)}", "-", withdrawn.get(h.artifact_id)]
        for h in found.holders
    ]
    rows += [
        [Id(t.artifact_id), "clips", f"dropped {len(t.clip_ids)}", "-", withdrawn.get(t.artifact_id)]
        for t in found.dropped
    ]
    rows += [[Id(r), "report", "shows it", "-", withdrawn.get(r)] for t in found.dropped for r in t.reports]
    for c in found.checkpoints:
        steps = "-" if c.first_step is None else f"{c.uses} uses, steps {c.first_step} to {c.last_step}"
        rows.append([Id(c.artifact_id), f"checkpoint ({c.stage})", str(c.verdict), steps, withdrawn.get(c.artifact_id)])
    rows += [[Id(p.artifact_id), p.kind, str(p.verdict), "-", withdrawn.get(p.artifact_id)] for p in found.products]
    print_rows(["artifact", "kind", "relation", "exposure", "withdrawn by"], rows)
    for channel in (c for c in found.channels if c.current):
        print(f"channel {channel.name} names {short(channel.artifact_id)}, which {channel.verdict}")
    if found.unindexed:
        print(f"{len(found.unindexed)} artifacts are not in the clip index, and left out here: m4v ledger index")
    if found.unread:
        print(f"{len(found.unread)} checkpoints are not read into the ledger yet: m4v ledger index")


def _applied_json(done: Applied) -> dict[str, Any]:
    return {
        "takedown_id": done.case.takedown_id, "did_something": done.did_something, "receipt": done.receipt,
        "receipt_uri": done.receipt_uri, "retrain": [cure.to_json() for cure in done.cures],
    }  # fmt: skip


def _print_applied(done: Applied) -> None:
    told = done.receipt
    if not done.did_something:
        print(f"takedown {done.case.takedown_id} is done already; nothing new turned up")
    print_facts({
        "case": done.case.takedown_id,
        "clips": len({c["clip_id"] for c in told["clips"]}),
        "withdrawn": len(told["withdrawn"]),
        "new versions": sum(bool(r.get("successor")) for r in told["replaced"]),
        "drained": len(told["drained"]),
        "bytes": told["deletion"],
        "receipt": done.receipt_uri,
    })  # fmt: skip
    _print_cures(list(done.cures))


def _print_cures(cures: list[Cure]) -> None:
    if not cures:
        print("no checkpoint that the ledger can make again saw the clips: nothing to retrain")
    for cure in cures:
        what = f"channels {', '.join(cure.channels)}" if cure.channels else f"{len(cure.checkpoints)} checkpoints"
        print(f"\nto cure {what}: {cure.command or cure.note}")
        if cure.plan is not None:
            rows = [[s.node_id, s.status, s.reason] for s in cure.plan.steps]
            print_rows(["stage", "plan", "why"], rows, text=("why",))
