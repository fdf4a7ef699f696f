"""`m4v data …`: what the data is, fetching it, why clips went, what other thresholds would do."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.cli.data_export import export_
from pipelines.cli.data_import import import_
from pipelines.cli.output import JsonOption, SetOption, print_json, print_rows, short, size
from pipelines.cli.runs import open_ledger
from pipelines.workspace import Workspace

data = typer.Typer(help="Sources, clips, datasets: what they hold, what was dropped and why.", no_args_is_help=True)
ClipsArgument = Annotated[
    str, typer.Argument(metavar="CLIPS|RUN", help="Id (or prefix) of a clips artifact, or of a run that made one.")
]
ListOption = Annotated[int | None, typer.Option("--limit", help="How many clips or rows to list; JSON: all.", min=0)]
SHOWN = 20


def register(app: typer.Typer) -> None:
    data.command("export")(export_)
    data.command("import")(import_)
    app.add_typer(data, name="data")


@data.command("sources")
def sources(
    where: Annotated[
        str | None, typer.Argument(metavar="[RECIPE|DIR]", help="A recipe, or a directory or `s3://…` prefix.")
    ] = None,
    set_: SetOption = None,
    encoder_fps: Annotated[
        float | None, typer.Option(help="Frames a second that one GPU encodes, for an estimate of GPU hours.", min=0.01)
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="First fetch what a recipe's tables name by URL into their locations.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="With --download: also try what failed for good (404, no media).")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Kinds of source; what a directory holds; what each source of a recipe would list. Reads no media.

    With --download the sources that have a `download` section are filled, as `m4v run` does it: stop it at any time,
    it goes on where it ended. Counts, bytes, hours and rejects are those of the collections' own tables and names.
    """
    from pipelines.cli import data_download, data_sources
    from pipelines.inspection.sources import is_location, known_kinds, look_at, recipe_sources, totals

    if download and (where is None or is_location(where)):
        raise InputError("--download takes a recipe", value=where, next_step="m4v data sources RECIPE --download")
    if where is None:
        kinds = known_kinds()
        print_json({"kinds": [k.to_json() for k in kinds]}) if json_ else data_sources.print_kinds(kinds)
    elif is_location(where):
        found = look_at(where, encoder_fps)
        print_json(found.to_json()) if json_ else data_sources.print_found(found)
    else:
        downloads = data_download.download_sources(where, set_ or (), again=again) if download else None
        reports = recipe_sources(where, set_ or (), encoder_fps)
        sums = totals(r.report for r in reports if r.report)
        if json_:
            found_there = {"recipe": where, "sources": [r.to_json() for r in reports], "totals": sums}
            print_json(found_there if downloads is None else {**found_there, "downloads": downloads})
        else:
            if downloads is not None:
                data_download.print_reports(downloads)
            data_sources.print_recipe(reports)
        if problem := next((r.problem for r in reports if r.problem), None):
            raise problem


@data.command("inspect")
def inspect(
    identity: ClipsArgument, set_: SetOption = None, limit: ListOption = None, json_: JsonOption = False
) -> None:
    """Funnel, scores and yields of curated clips; with --set what other thresholds would keep.

    `--set curate.filters.min_motion=2` decides anew from the stored scores: nothing is decoded or measured.
    """
    from pipelines.cli import data_tables
    from pipelines.inspection.clip_table import ClipTable
    from pipelines.inspection.clips import clip_facts
    from pipelines.inspection.targets import find_target
    from pipelines.inspection.whatif import stored_config, what_if

    with open_ledger() as ledger:
        target = find_target(Workspace.open(), ledger, identity, (ArtifactKind.CLIPS,))
    table = ClipTable(target.artifact)
    if set_:
        tried = what_if(target, table, set_)
        head = {"artifact_id": target.id, "run_id": target.run and target.run.run_id, "recipe": target.recipe}
        if json_:
            print_json({**head, **tried.to_json(limit)})
        else:
            data_tables.print_what_if(target, tried, SHOWN if limit is None else limit)
        return
    config = stored_config(target)
    facts = clip_facts(target, table, config)
    if json_:
        print_json(facts)
    else:
        data_tables.print_clips(facts)


@data.command("preview")
def preview(
    identity: Annotated[
        str,
        typer.Argument(metavar="CLIPS|DATASET|RUN", help="Id (or prefix) of an artifact or of its run."),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write (default: preview-ID.html here).")] = None,
    clips: Annotated[int, typer.Option(help="Clips on the page at most, of every rule and source.", min=0)] = 600,
    media_mib: Annotated[float, typer.Option(help="Pictures and videos on the page at most, in MiB.", min=0)] = 24.0,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Write one HTML page: funnel, scores with thresholds, kept and dropped clips, buckets, quarantine.

    The page needs no network and no other file. With --set it shows which clips other thresholds would move.
    """
    from m4v.core.storage import write_atomic
    from pipelines.inspection.targets import beside, find_target
    from pipelines.web.preview import Limits, build

    with open_ledger() as ledger:
        named = find_target(Workspace.open(), ledger, identity, (ArtifactKind.DATASET, ArtifactKind.CLIPS))
        table, dataset = beside(Workspace.open(), ledger, named)
    path = out or Path(f"preview-{short(named.id)}.html")
    html = build(named, table, dataset, Limits(clips, media_mib), set_ or ()).encode()
    try:
        write_atomic(path, html)
    except OSError as error:
        raise InputError(
            f"the page cannot be written: {error.strerror}", value=str(path), next_step="--out FILE where you may write"
        ) from None
    if json_:
        print_json({"artifact_id": named.id, "page": str(path), "size_bytes": len(html)})
    else:
        print(f"{path} ({size(len(html))})")


@data.command("quarantine")
def quarantine(
    identity: Annotated[
        str, typer.Argument(metavar="CLIPS|DATASET|RUN", help="Id (or prefix) of an artifact, or of a run.")
    ],
    reason: Annotated[str | None, typer.Option(help="Only this reason, e.g. decode_error.")] = None,
    limit: ListOption = None,
    json_: JsonOption = False,
) -> None:
    """Items that could not be used at all, each with its reason and what helps."""
    from pipelines.inspection.quarantine import HOLDERS, counted, held_items
    from pipelines.inspection.targets import find_targets

    with open_ledger() as ledger:
        targets = find_targets(Workspace.open(), ledger, identity, HOLDERS)
    rows = held_items([target.artifact for target in targets])
    counts = counted(rows)
    if reason is not None:
        if reason not in counts:
            raise InputError("nothing is quarantined for this reason", value=reason, next_step=_reasons(reason, counts))
        rows = [row for row in rows if row.reason == reason]
    if json_:
        print_json({
            "artifacts": [{"artifact_id": t.id, "kind": str(t.artifact.kind)} for t in targets],
            "counts": counts, "items": [row.to_json() for row in rows[:limit]],
        })  # fmt: skip
        return
    shown = rows if limit is None else rows[:limit]
    print_rows(
        ("source", "item", "reason", "step", "detail", "next"),
        [(r.source, r.path, r.reason, r.step, r.detail, r.next) for r in shown],
        text=("item", "detail", "next"),
    )
    print(f"{len(rows)} quarantined" + (f", {len(shown)} listed" if len(shown) < len(rows) else ""))


def _reasons(wanted: str, counts: dict[str, int]) -> str:
    near = difflib.get_close_matches(wanted, counts, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(counts)}" if counts else "nothing is quarantined here at all"
