"""`m4v ledger verify|index|backup`: prove that nothing was changed; complete the clip index; copy it while in use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError
from pipelines.cli.output import JsonOption, print_json, short
from pipelines.cli.runs import open_ledger
from pipelines.exposure.states import record_missing_states
from pipelines.ledger.clip_queries import Unindexed
from pipelines.membership.backfill import Indexed, backfill, check_index, index_again

ledger = typer.Typer(help="The ledger of record.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(ledger, name="ledger")


@ledger.command("verify")
def verify(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make stale projections again from the events.")] = False,
    json_: JsonOption = False,
) -> None:
    """Check the hash chain, every row it witnesses and the clip index; exits 20 when something was changed."""
    with open_ledger() as opened:
        rebuilt = opened.rebuild() if rebuild else 0
        report = opened.verify_chain()
        index, unindexed = check_index(opened), opened.unindexed()
    if json_:
        told = {"clip_index": index, "unindexed": [m._asdict() for m in unindexed]}
        print_json({**asdict(report), "ok": report.ok, "rebuilt": rebuilt, **told})
    else:
        print(f"{report.events} events, head {report.head}, {rebuilt} projections rebuilt")
        for line in (*report.problems, *(f"stale: {s}" for s in report.stale)):
            print(f"  {line}")
    if not report.ok:
        raise DataIntegrityError(
            f"{len(report.problems)} rows of the ledger do not agree with the hash chain",
            value=report.problems[0],
            next_step="restore a backup; nothing here may be trusted until then",
        )
    if not json_:
        print("the chain holds")
    _tell_index(index, [] if json_ else unindexed)
    if not json_:
        print("the clip index agrees with its artifacts")


def _tell_index(problems: list[str], unindexed: list[Unindexed]) -> None:
    """Print what the clip index lacks; raises DataIntegrityError when it is damaged."""
    for missing in unindexed:
        what = "was deleted before it came into" if missing.deleted else "is not in"
        print(f"  {missing.kind} {short(missing.artifact_id)} {what} the clip index")
    if any(not missing.deleted for missing in unindexed):
        print("  next: m4v ledger index")
    if problems:
        raise DataIntegrityError(
            f"clip index is damaged in {len(problems)} places: takedowns may miss clips",
            value=problems[0],
            next_step="m4v ledger index --again ARTIFACT, or restore a backup",
        )


@ledger.command("index")
def index_(
    again: Annotated[
        list[str] | None, typer.Option(metavar="ARTIFACT", help="Make the index of this artifact anew from its bytes.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Bring clips and exposure states of artifacts that were recorded before into the ledger; may be stopped and run
    again."""
    done: list[Indexed] = []
    with open_ledger() as opened:
        for one in (index_again(opened, a) for a in again) if again else backfill(opened):
            done.append(one)
            if not json_:
                told = one.problem or f"{one.rows} new rows in {one.seconds:g} s"
                print(f"{one.kind} {short(one.artifact_id)}: {told}", flush=True)
        for checkpoint, problem in record_missing_states(opened):
            reason = None if problem is None else problem.message
            done.append(Indexed(checkpoint, ArtifactKind.CHECKPOINT, 0, 0.0, reason))
            if not json_:
                print(f"checkpoint {short(checkpoint)}: {reason or 'exposure state recorded'}", flush=True)
    if json_:
        print_json([asdict(one) for one in done])
    elif not done:
        print("every artifact is in the clip index")
    failed = [one for one in done if one.problem]
    if failed:
        raise DataIntegrityError(
            f"{len(failed)} of {len(done)} artifacts cannot be indexed: takedowns do not find their clips",
            value=failed[0].problem,
            where=f"{failed[0].kind} {short(failed[0].artifact_id)}",
            next_step="m4v artifacts verify",
        )


@ledger.command("backup")
def backup(path: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Copy a SQLite ledger while it is in use."""
    with open_ledger() as opened:
        print(f"wrote {opened.backup(path)}")
