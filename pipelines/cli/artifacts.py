"""`m4v artifacts list|show|verify`: immutable outputs, and whether their bytes are still what they were."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from m4v.core.artifacts import read_manifest, verify
from m4v.core.errors import DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.cli.output import Id, JsonOption, print_facts, print_json, print_rows, size
from pipelines.cli.runs import LimitOption, open_ledger
from pipelines.ledger import ArtifactRow

ArtifactArgument = Annotated[str, typer.Argument(help="Id of an artifact, or a unique prefix.")]
artifacts = typer.Typer(help="Published artifacts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(artifacts, name="artifacts")


@artifacts.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="Only this kind, e.g. checkpoint.")] = None,
    limit: LimitOption = 50,
    json_: JsonOption = False,
) -> None:
    """List artifacts, newest first."""
    with open_ledger() as ledger:
        found = ledger.artifacts(kind=kind, limit=limit)
    if json_:
        print_json([asdict(a) for a in found])
        return
    print_rows(
        ("artifact", "kind", "size", "files", "recorded"),
        [(Id(a.artifact_id), a.kind, size(a.size_bytes), a.files, a.recorded_at) for a in found],
    )


@artifacts.command("show")
def show(identity: ArtifactArgument, json_: JsonOption = False) -> None:
    """Show an artifact: summary, files, the runs that made it and the runs that read it."""
    with open_ledger() as ledger:
        row = ledger.artifact(identity)
        producers = [r.run_id for r in ledger.producers(row.artifact_id)]
        consumers = [r.run_id for r in ledger.consumers(row.artifact_id)]
    manifest = read_manifest(Storage(row.uri))
    if json_:
        print_json({**asdict(row), "manifest": manifest.canonical(), "made_by": producers, "read_by": consumers})
        return
    facts = {k: v for k, v in asdict(row).items() if k != "summary"}
    print_facts({**facts, "size": size(row.size_bytes), "made_by": producers, "read_by": consumers})
    print("\nsummary")
    print_facts({f"  {k}": v for k, v in row.summary.items()})
    print()
    print_rows(("file", "size", "sha256"), [(f.path, size(f.size_bytes), Id(f.sha256)) for f in manifest.files])


@artifacts.command("verify")
def verify_(
    identities: Annotated[list[str] | None, typer.Argument(help="Ids or prefixes; none: every artifact.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, no digests.")] = False,
    json_: JsonOption = False,
) -> None:
    """Check bytes against manifests; exits 20 when any artifact is damaged or gone."""
    with open_ledger() as ledger:
        rows = [ledger.artifact(i) for i in identities] if identities else ledger.artifacts(limit=None)
    verdicts = [(row, _problem(row, deep=not quick)) for row in rows]
    if json_:
        print_json([{"artifact_id": r.artifact_id, "kind": r.kind, "uri": r.uri, "problem": p} for r, p in verdicts])
    else:
        print_rows(
            ("artifact", "kind", "size", "verdict"),
            [(Id(r.artifact_id), r.kind, size(r.size_bytes), p or "ok") for r, p in verdicts],
            text=("verdict",),
        )
    damaged = [row for row, problem in verdicts if problem]
    if damaged:
        raise DataIntegrityError(
            f"{len(damaged)} of {len(rows)} artifacts are damaged or gone",
            value=damaged[0].artifact_id,
            next_step="run the recipe again: a damaged output is made anew",
        )


def _problem(row: ArtifactRow, *, deep: bool) -> str | None:
    try:
        verify(Storage(row.uri), row.artifact_id, deep=deep)
    except (DataIntegrityError, InputError) as error:
        return error.message
    return None
