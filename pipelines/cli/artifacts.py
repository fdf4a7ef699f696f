"""`m4v artifacts list|show|verify|relocate|pin|unpin|gc`: immutable outputs, and whether their bytes are still so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from m4v.core.artifacts import MANIFEST, read_manifest
from m4v.core.errors import ConfigError, DataIntegrityError, InputError
from m4v.core.storage import Storage
from pipelines.access import Role, command_actor, require
from pipelines.cli.output import Id, JsonOption, print_facts, print_json, print_rows, size
from pipelines.cli.runs import LimitOption, open_ledger
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.settings import load_settings
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from dataprep.versions.repair import Repair
    from pipelines.repair import Verdict

SHOWN_PROBLEMS = 20
ArtifactArgument = Annotated[str, typer.Argument(help="Id of an artifact, or a unique prefix.")]
artifacts = typer.Typer(help="Published artifacts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    import pipelines.cli.retention  # noqa: F401 - adds pin, unpin and gc

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
        ("artifact", "kind", "size", "files", "recorded", "bytes"),
        [(Id(a.artifact_id), a.kind, size(a.size_bytes), a.files, a.recorded_at, _bytes(a)) for a in found],
    )


def _bytes(row: ArtifactRow) -> str:
    return "there" if row.deletion is None else f"deleted {row.deleted_at:%Y-%m-%d}"


@artifacts.command("show")
def show(identity: ArtifactArgument, json_: JsonOption = False) -> None:
    """Show an artifact: summary, files, the runs that made it and the runs that read it."""
    with open_ledger() as ledger:
        row = ledger.artifact(identity)
        producers = [r.run_id for r in ledger.producers(row.artifact_id)]
        consumers = [r.run_id for r in ledger.consumers(row.artifact_id)]
        deletion = _deletion(ledger, row)
        pins = [f"{p.pinned_by}: {p.reason}" for p in ledger.pins(row.artifact_id)]
    manifest = read_manifest(Storage(row.uri)) if deletion is None else None
    links = {"made_by": producers, "read_by": consumers, "pins": pins, "deletion": deletion}
    if json_:
        print_json({**asdict(row), **links, "manifest": manifest.canonical() if manifest else None})
        return
    facts = {k: v for k, v in asdict(row).items() if k not in ("summary", "deletion", "deleted_at")}
    print_facts({**facts, "size": size(row.size_bytes), **links})
    print("\nsummary")
    print_facts({f"  {k}": v for k, v in row.summary.items()})
    print()
    if manifest is None:
        print("Its bytes were deleted; what the ledger knows of it stays. The recipe that made it makes it again.")
        return
    print_rows(("file", "size", "sha256"), [(f.path, size(f.size_bytes), Id(f.sha256)) for f in manifest.files])


def _deletion(ledger: Ledger, row: ArtifactRow) -> dict[str, object] | None:
    """When, by whom and why the bytes were deleted; None while they are there."""
    if row.deletion is None:
        return None
    events = [e for e in ledger.events(subject=row.artifact_id, limit=None) if e.kind == "artifact.deleted"]
    facts = {k: events[-1].payload.get(k) for k in ("by", "policy", "reason")} if events else {}
    return {"at": row.deleted_at, "finished": row.deletion == "done", **facts}


@artifacts.command("verify")
def verify_(
    identities: Annotated[list[str] | None, typer.Argument(help="Ids or prefixes; none: every artifact.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, no digests.")] = False,
    mend: Annotated[
        bool, typer.Option("--repair", help="Make damaged files again from equal files, other versions and items.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Check bytes against manifests, and every sample of a dataset against its index; exits 20 when any artifact is
    damaged or gone (with --repair: still)."""
    if quick and mend:
        raise ConfigError("--quick and --repair exclude each other", next_step="leave --quick out: a repair reads all")
    with open_ledger() as ledger:
        rows = [ledger.artifact(i) for i in identities] if identities else ledger.artifacts(limit=None)
        rows = [row for row in rows if identities or row.deletion is None]  # what was deleted is not damaged
        verdicts = [_verdict(ledger, row, deep=not quick, mend=mend) for row in rows]
    if json_:
        print_json([_verdict_json(row, *verdict) for row, verdict in zip(rows, verdicts, strict=True)])
    else:
        _print_verdicts(rows, verdicts)
    damaged = [row for row, (verdict, _) in zip(rows, verdicts, strict=True) if verdict.problem]
    if damaged:
        again = "run the recipe again: a damaged output is made anew"
        raise DataIntegrityError(
            f"{len(damaged)} of {len(rows)} artifacts are damaged or gone",
            value=damaged[0].artifact_id,
            next_step=again if mend else f"m4v artifacts verify {damaged[0].artifact_id[:12]} --repair, or {again}",
        )


@artifacts.command("relocate")
def relocate_(
    old: Annotated[str, typer.Argument(help="Where the home or store lay: a directory or s3://BUCKET/PREFIX.")],
    new: Annotated[str, typer.Argument(help="Where it lies now.")],
    quick: Annotated[bool, typer.Option("--quick", help="Hold files against their sizes only, not digests.")] = False,
    json_: JsonOption = False,
) -> None:
    """Make the ledger follow a home or store that was moved: every location below OLD becomes the same below NEW, once
    the bytes there verify. Stopped, the same command goes on; exits 20 when an artifact is not whole there."""
    from pipelines.relocate import Outcome, relocate

    actor = command_actor(load_settings(Workspace.open()).access)
    require(actor, Role.OPERATOR, "relocate artifacts")
    with open_ledger() as ledger:
        found = list(relocate(ledger, old, new, by=actor.name, deep=not quick))
    if json_:
        print_json([one.to_json() for one in found])
    else:
        print_rows(
            ("artifact", "kind", "size", "outcome", "why"),
            [
                (Id(r.artifact.artifact_id), r.artifact.kind, size(r.artifact.size_bytes), r.outcome, r.detail)
                for r in found
            ],
            text=("why",),
        )  # fmt: skip
        moved = sum(one.outcome is Outcome.MOVED for one in found)
        print(f"{moved} of {len(found)} locations rewritten" if found else "every artifact lies there already")
    damaged = [one for one in found if one.outcome is Outcome.DAMAGED]
    if damaged:
        raise DataIntegrityError(
            f"{len(damaged)} of {len(found)} artifacts are not whole at the new place and keep their old location",
            value=damaged[0].artifact.artifact_id, where=damaged[0].uri,
            next_step="bring their files there, then the same command goes on",
        )  # fmt: skip


def _verdict(ledger: Ledger, row: ArtifactRow, *, deep: bool, mend: bool) -> tuple[Verdict, Repair]:
    """What is wrong with an artifact, after an attempt to mend it where that is asked for."""
    from dataprep.versions.repair import Repair  # reads tensors' headers: an import that other verbs do without
    from pipelines.repair import inspect
    from pipelines.repair import mend as mend_artifact

    verdict = inspect(row, deep=deep)
    if not (mend and verdict.problem):
        return verdict, Repair()
    try:
        done = mend_artifact(ledger, Workspace.open().items_uri, row)
    except (DataIntegrityError, InputError) as error:
        return verdict, Repair(left={MANIFEST: error.message})
    return (inspect(row, deep=deep) if done.repaired else verdict), done


def _verdict_json(row: ArtifactRow, verdict: Verdict, done: Repair) -> dict[str, object]:
    return {
        "artifact_id": row.artifact_id, "kind": row.kind, "uri": row.uri, "problem": verdict.problem,
        "problems": [p._asdict() for p in verdict.problems], "repaired": done.repaired,
    }  # fmt: skip


def _print_verdicts(rows: Sequence[ArtifactRow], verdicts: Sequence[tuple[Verdict, Repair]]) -> None:
    print_rows(
        ("artifact", "kind", "size", "verdict"),
        [
            (Id(r.artifact_id), r.kind, size(r.size_bytes), v.problem or ("repaired" if done.repaired else "ok"))
            for r, (v, done) in zip(rows, verdicts, strict=True)
        ],
        text=("verdict",),
    )
    for row, (verdict, done) in zip(rows, verdicts, strict=True):
        lines = [f"{p.place}: {p.what}" for p in verdict.problems[:SHOWN_PROBLEMS]]
        if len(verdict.problems) > SHOWN_PROBLEMS:
            lines.append(f"and {len(verdict.problems) - SHOWN_PROBLEMS} more (--json lists them)")
        lines += [f"repaired {path} from {how}" for path, how in done.repaired.items()]
        lines += [f"cannot repair {path}: {why}" for path, why in done.left.items()]
        for line in lines:
            print(f"{row.artifact_id[:12]} {line}")
