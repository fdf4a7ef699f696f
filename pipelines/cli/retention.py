"""`m4v artifacts pin|unpin|gc`: what is kept, and what goes because nothing needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InfrastructureError
from pipelines.access import Role, command_actor, require
from pipelines.cli.artifacts import ArtifactArgument, artifacts
from pipelines.cli.channels import open_workspace
from pipelines.cli.output import Id, JsonOption, print_json, print_rows, short, size
from pipelines.gc import (
    Collected,
    Judged,
    Leftover,
    collect_artifacts,
    find_leftovers,
    judge,
    remove_leftovers,
    verified_now,
)
from pipelines.gc.judge import resumable_since
from pipelines.gc.sizes import freed_bytes
from pipelines.ledger import Ledger
from pipelines.ledger.types import utc_now
from pipelines.settings import load_settings
from pipelines.workspace import Workspace


@artifacts.command("pin")
def pin(
    identity: ArtifactArgument,
    reason: Annotated[str, typer.Option(help="Why it must stay.")] = "",
    json_: JsonOption = False,
) -> None:
    """Keep an artifact, and everything it was made from, whatever retention says."""
    ledger, _, actor = open_workspace()
    with ledger:
        require(actor, Role.OPERATOR, "pin artifacts")
        row = ledger.pin(ledger.artifact(identity).artifact_id, by=actor.name, reason=reason)
    if json_:
        print_json(asdict(row))
    else:
        print(f"pinned {row.kind} {short(row.artifact_id)}")


@artifacts.command("unpin")
def unpin(identity: ArtifactArgument, json_: JsonOption = False) -> None:
    """Release every pin of an artifact."""
    ledger, _, actor = open_workspace()
    with ledger:
        require(actor, Role.OPERATOR, "release pins")
        rows = ledger.unpin(ledger.artifact(identity).artifact_id, by=actor.name)
    if json_:
        print_json([asdict(row) for row in rows])
    else:
        print(f"released {len(rows)} pin{'s' * (len(rows) > 1)} of {rows[0].kind} {short(rows[0].artifact_id)}")


@artifacts.command("gc")
def gc(
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it nothing is changed.")] = False,
    kind: Annotated[ArtifactKind | None, typer.Option(help="Only artifacts of this kind, no leftovers.")] = None,
    json_: JsonOption = False,
) -> None:
    """Show what nothing needs any more, how many bytes it holds and why everything else stays; with --apply, delete
    it. Rows of the ledger stay. What counts as needed: section `retention` of the workspace's settings."""
    workspace = Workspace.open()
    settings = load_settings(workspace)
    actor, retention = command_actor(settings.access), settings.retention
    if apply:
        require(actor, Role.ADMIN, "delete artifacts")
    with Ledger.open(workspace.ledger_url) as ledger:
        now = utc_now()
        facts = ledger.reach_facts(retention.runs, resumable_since(retention, now))
        facts.verified = verified_now(workspace.home)
        judged = judge(facts, retention, now, workspace.store_uri)
        judged = [j for j in judged if kind is None or j.kind == kind]
        leftovers = [] if kind is not None else find_leftovers(ledger, workspace, retention)
        freed = freed_bytes((j.uri, j.size_bytes) for j in judged if not j.kept)
        done, gone = Collected(), []
        if apply:
            done = collect_artifacts(
                ledger, workspace.store_uri, retention, by=actor.name, kind=kind, home=workspace.home
            )
            gone = remove_leftovers(ledger, workspace, retention, leftovers)
    if json_:
        print_json(_json(apply, judged, leftovers, freed, done, gone))
    else:
        _print(apply, judged, leftovers, freed, done, gone)
    if done.failed:
        first = next(iter(done.failed))
        raise InfrastructureError(
            f"{len(done.failed)} artifacts could not be deleted: {done.failed[first]}", value=first,
            next_step="m4v artifacts gc --apply tries again",
        )  # fmt: skip


def _json(
    apply: bool,
    judged: Sequence[Judged],
    leftovers: Sequence[Leftover],
    freed: int,
    done: Collected,
    gone: Sequence[Leftover],
) -> dict[str, Any]:
    return {
        "applied": apply,
        "artifacts": [asdict(j) for j in judged],
        "leftovers": [asdict(leftover) for leftover in leftovers],
        "kept_bytes": sum(j.size_bytes for j in judged if j.kept),
        "unreachable_bytes": sum(j.size_bytes for j in judged if not j.kept),
        "freed_bytes": freed + sum(leftover.size_bytes for leftover in leftovers),
        "deleted": [row.artifact_id for row in done.deleted],
        "removed": [leftover.uri for leftover in gone],
        "failed": done.failed,
    }


def _print(
    apply: bool,
    judged: Sequence[Judged],
    leftovers: Sequence[Leftover],
    freed: int,
    done: Collected,
    gone: Sequence[Leftover],
) -> None:
    deleted = {row.artifact_id for row in done.deleted}
    rows = [(Id(j.artifact_id), j.kind, size(j.size_bytes), _fate(j, apply, deleted), j.why) for j in judged]
    print_rows(("artifact", "kind", "size", "fate", "why"), rows, text=("why",))
    if leftovers:
        print()
        removed = {leftover.uri for leftover in gone}
        print_rows(
            ("leftover", "size", "fate", "why", "place"),
            [(f.kind, size(f.size_bytes), _gone(f, apply, removed), f.why, f.uri) for f in leftovers],
            text=("why", "place"),
        )
    kinds = Counter(j.kind for j in judged if not j.kept)
    what = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no artifact"
    total = sum(j.size_bytes for j in judged if not j.kept) + sum(f.size_bytes for f in leftovers)
    print()
    if apply:
        print(f"deleted {len(done.deleted)} artifacts of {size(done.size_bytes)} and {len(gone)} leftovers")
        return
    print(f"may go: {what}, {len(leftovers)} leftovers; {size(total)}, of which this disk gets back "
          f"{size(freed + sum(f.size_bytes for f in leftovers))}")  # fmt: skip
    if kinds or leftovers:
        print("nothing was changed; --apply deletes it")


def _fate(judged: Judged, apply: bool, deleted: set[str]) -> str:
    if judged.kept:
        return "stays"
    if not apply:
        return "may go"
    return "deleted" if judged.artifact_id in deleted else "stays for now"


def _gone(leftover: Leftover, apply: bool, removed: set[str]) -> str:
    if not apply:
        return "may go"
    return "deleted" if leftover.uri in removed else "stays for now"
