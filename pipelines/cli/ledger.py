"""`m4v ledger verify|backup`: prove that the history was not changed; copy it while it is in use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from m4v.core.errors import DataIntegrityError
from pipelines.cli.output import JsonOption, print_json
from pipelines.cli.runs import open_ledger

ledger = typer.Typer(help="The ledger of record.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(ledger, name="ledger")


@ledger.command("verify")
def verify(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make stale projections again from the events.")] = False,
    json_: JsonOption = False,
) -> None:
    """Check the hash chain and every row it witnesses; exits 20 when something was changed."""
    with open_ledger() as opened:
        rebuilt = opened.rebuild() if rebuild else 0
        report = opened.verify_chain()
    if json_:
        print_json({**asdict(report), "ok": report.ok, "rebuilt": rebuilt})
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


@ledger.command("backup")
def backup(path: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Copy a SQLite ledger while it is in use."""
    with open_ledger() as opened:
        print(f"wrote {opened.backup(path)}")
