"""`m4v weights list|check|import`: third-party models, whether they are here, and how they enter the ledger."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m4v.core.config import parse
from m4v.core.errors import ConfigError, ExitClass
from m4v.weights.catalogue import CatalogueEntry, entries, entry, weights_root
from m4v.weights.config import WeightsConfig
from m4v.weights.source import source_files
from pipelines.cli.display import RunDisplay
from pipelines.cli.output import JsonOption, duration, print_facts, print_json, print_rows, size
from pipelines.execute import PipelineRun
from pipelines.graph import weights_node
from pipelines.ledger import Ledger
from pipelines.recipe import Profile
from pipelines.session import launcher_of
from pipelines.spec import StageNode
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from m4v.weights.check import CheckReport, Progress

EntryArgument = Annotated[str, typer.Argument(metavar="ENTRY", help="Entry of `m4v weights list`.")]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", help="Folder of the published files, or the root above it (default: $M4V_WEIGHTS)."),
]
OwnOption = Annotated[
    bool, typer.Option("--own", help="A model of your own in this format: published sizes and digests do not hold.")
]
RUN_NAME = "weights import"  # stands where runs of a recipe have its name, and is no recipe's

weights = typer.Typer(
    help="Published models of others: PyramidFlow, T5 and CLIP, Wan2.1, scorers.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(weights, name="weights")


@weights.command("list")
def list_(json_: JsonOption = False) -> None:
    """List every third-party model: what for, licence, size, and how much of it is below $M4V_WEIGHTS."""
    rows = [(found, _present(found)) for found in entries()]
    if json_:
        print_json({"root": str(weights_root()), "entries": [_entry_json(e, here) for e, here in rows]})
        return
    print_rows(
        ("entry", "here", "size", "licence", "what for", "place"),
        [
            (e.name, f"{here} of {total}", size(e.bytes_to_fetch), e.licence or "not stated", e.purpose, e.place)
            for e, (here, total) in rows
        ],
        title=f"Weights below {weights_root()}",
        text=("what for",),
    )


def _present(found: CatalogueEntry, root: Path | None = None) -> tuple[int, int]:
    """Files of the entry that lie at their place, and how many there are."""
    files = source_files(found, found.folder() if root is None else root)
    return sum(f.path.is_file() for f in files), len(files)


def _entry_json(found: CatalogueEntry, here: tuple[int, int]) -> dict[str, object]:
    return {
        **found.canonical(),
        "address": found.address,
        "folder": str(found.folder()),
        "size_bytes": found.bytes_to_fetch,
        "importable": found.importable,
        "files_present": here[0],
        "files_total": here[1],
        "fetch_command": found.fetch_command,
    }


@weights.command("check")
def check_(
    names: Annotated[
        list[str] | None, typer.Argument(help="Entries; all that have a file here when none is named.")
    ] = None,
    from_: FromOption = None,
    digest: Annotated[bool, typer.Option("--digest", help="Read and hash every byte.")] = False,
    own: OwnOption = False,
    json_: JsonOption = False,
) -> None:
    """Check files, sizes, digests, and keys and shapes against the models they are for.

    Ends with 10 when an entry lacks a file, with 20 when something is not what it should be.
    """
    root = _existing(from_)
    chosen = [entry(name) for name in names] if names else [e for e in entries() if _present(e, root)[0]]
    reports = [_check(e, root, own, digest, _say(json_)) for e in chosen]
    if json_:
        print_json({"root": str(root or weights_root()), "entries": [_report_json(r) for r in reports]})
    else:
        for line in (line for report in reports for line in report.lines()):
            print(line)
        if not reports:
            print(f"no entry has a file below {root or weights_root()}; m4v weights list says what there is")
    raise typer.Exit(int(_verdict(reports)))


def _existing(folder: Path | None) -> Path | None:
    """Raises ConfigError for a folder that is none."""
    if folder is not None and not folder.expanduser().is_dir():
        raise ConfigError("folder does not exist", value=str(folder), where="--from")
    return folder


def _check(
    found: CatalogueEntry, folder: Path | None, own: bool, hashing: bool = False, progress: Progress | None = None
) -> CheckReport:
    from m4v.weights.check import check  # needs torch, which the other verbs do without

    return check(found, folder, published=not own, hashing=hashing, progress=progress)


def _say(quiet: bool) -> Progress | None:
    """A line a file while bytes are hashed, on stderr: the report is the output."""
    if quiet or not sys.stderr.isatty():
        return None
    return lambda done, total, file: print(f"hashing {file}: {size(done)} of {size(total)} done", file=sys.stderr)


def _report_json(report: CheckReport) -> dict[str, object]:
    return {**report.canonical(), "ok": report.ok}


def _verdict(reports: Sequence[CheckReport]) -> ExitClass:
    if any(not part.ok for r in reports for part in r.components):
        return ExitClass.DATA_INTEGRITY
    if any(file.state not in ("ok", "missing") for r in reports for file in r.files):
        return ExitClass.DATA_INTEGRITY
    return ExitClass.OK if all(report.ok for report in reports) else ExitClass.CONFIG


@weights.command("import")
def import_(
    name: EntryArgument,
    from_: FromOption = None,
    alias: Annotated[
        str | None,
        typer.Option("--name", help="What recipes call it: under the same name they find this import in the ledger."),
    ] = None,
    own: OwnOption = False,
    json_: JsonOption = False,
) -> None:
    """Check published files and bring them into the store as a `weights` artifact, recorded in the ledger.

    The same files again are a cache hit. Files that are damaged or not what they claim to be end with code 20 and
    publish nothing; missing ones with 10.
    """
    given = {"name": alias or default_name(name), "entry": name, "published": not own}
    config = parse(WeightsConfig, given, "m4v weights import")
    folder = _existing(from_)
    node = weights_node(config, None if folder is None else str(folder))
    run = _run(node, config, quiet=json_)
    outcome = run.outcomes[node.id]
    made = outcome.outputs.get("weights")
    if json_:
        print_json({"pipeline_run_id": run.id, "exit_class": int(run.exit_class), "node": outcome.to_json(),
                    "artifact_id": made.artifact_id if made else None})  # fmt: skip
    elif made is not None:
        print_facts({"status": str(outcome.status), "run": outcome.run_id, "artifact": made.artifact_id,
                     "size": size(made.size_bytes), "took": duration(outcome.seconds), "place": made.uri})  # fmt: skip
        print(f"in a recipe: {{name: {config.name}, entry: {name}, location: artifact:{made.artifact_id}}}")
    else:
        if sys.stdout.isatty():  # elsewhere the display said it in full
            print(f"{node.id} {outcome.status}: {outcome.error}")
        if run.exit_class in (ExitClass.DATA_INTEGRITY, ExitClass.CONFIG):
            print("\n".join(_check(entry(name), folder, own).lines()))
    raise typer.Exit(int(run.exit_class))


def _run(node: StageNode, config: WeightsConfig, *, quiet: bool) -> PipelineRun:
    """The node as a pipeline run of its own, to its end."""
    workspace = Workspace.open()
    display = RunDisplay(quiet=quiet)
    with Ledger.open(workspace.ledger_url) as ledger:
        run = PipelineRun(
            RUN_NAME, config.canonical(), [node], workspace,
            ledger=ledger, launcher=launcher_of(Profile()), on_event=display,
        )  # fmt: skip
        with display:
            run.run_all()
    return run


def default_name(name: str) -> str:
    """A name that recipes allow: other characters of the entry's become dashes."""
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())
