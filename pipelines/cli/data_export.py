"""`m4v data export`: a dataset version in the form of another trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from m4v.core.storage import Storage
from pipelines.cli.output import JsonOption, print_facts, print_json, short, size
from pipelines.cli.runs import open_ledger
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from dataprep.encode.export import Exported


def export_(
    identity: Annotated[
        str, typer.Argument(metavar="DATASET|RUN", help="Id (or prefix) of a dataset, or of a run that made one.")
    ],
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder or `s3://…` prefix to write (default: export-ID here).")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Stands before the names of latents and texts in the lines (default: a folder's path, no s3:// one)."
        ),
    ] = None,
    media: Annotated[
        list[str] | None,
        typer.Option("--media", metavar="SOURCE=DIR", help="Folder of a source's media, for the lines; repeatable."),
    ] = None,
    every_caption: Annotated[
        bool, typer.Option("--every-caption", help="A line a caption, not the first only.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws from the latents' posterior.")] = 0,
    any_encoder: Annotated[
        bool, typer.Option("--any-encoder", help="Also latents and texts that no PyramidFlow model understands.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Write a dataset as PyramidFlow's JSON lines with a `.pt` file a latent and a text, for its own trainer.

    Interrupted, it goes on where it ended. A withdrawn dataset is refused; clips taken down later stay in what was
    exported before: `export.json` and every line name the dataset, sample and clip for that.
    """
    from dataprep.encode.export import FORMAT, ExportOptions, export_dataset
    from pipelines.inspection.targets import find_target

    folders = _media_folders(media or [])
    with open_ledger() as ledger:
        target = find_target(Workspace.open(), ledger, identity, (ArtifactKind.DATASET,))
        ledger.refuse_withdrawn([(target.id, str(ArtifactKind.DATASET))], "m4v data export")
    folder = out or f"export-{short(target.id)}"
    place = Storage(folder)
    # Its loader opens names as they are: those of a store are of the copy that it will read.
    before = (f"{place.uri}/" if place.is_local else "") if prefix is None else prefix
    options = ExportOptions(before, folders, every_caption, seed, any_encoder)
    with _progress(json_) as tick_to:
        done = export_dataset(target.artifact, place, options, _ticker(tick_to))
    if json_:
        print_json({"artifact_id": target.id, "format": FORMAT, "folder": folder, **done.figures()})
        return
    _print_done(target.id, folder, done)


def _print_done(dataset: str, folder: str, done: Exported) -> None:
    print_facts(
        {
            "dataset": dataset, "folder": folder, "lines": ", ".join(f"{n} {m}" for m, n in done.lines.items()),
            "latents and texts": size(done.size_bytes), "left out": _words(done.left_out),
        }
    )  # fmt: skip
    if done.other_sizes:
        print(
            f"{done.other_sizes} videos are of sizes that its published loader refuses "
            "(it asserts 640x384 or 1280x768): set its width and height"
        )


def _words(left_out: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in left_out.items()) or "-"


def _media_folders(given: list[str]) -> dict[str, str]:
    """Raises InputError for one that is not SOURCE=DIR."""
    folders = {}
    for text in given:
        name, found, folder = text.partition("=")
        if not (found and name and folder):
            raise InputError("--media takes SOURCE=DIR", value=text, next_step="--media webvid=/data/webvid")
        folders[name] = folder
    return folders


def _progress(quiet: bool) -> Progress:
    columns = (TextColumn("exporting"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)


def _ticker(live: Progress) -> Callable[[int, int], None]:
    line = live.add_task("", total=None)
    return lambda done, total: live.update(line, completed=done, total=total)
