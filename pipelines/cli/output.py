"""How commands print: tables on a terminal, plain tab-separated lines otherwise, JSON on request.

JSON keys are a contract: they are added to and never renamed or taken away; times are ISO 8601 in UTC, durations
seconds, sizes bytes, ids whole. Plain lines hold the same cells as the table, with ids whole.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.ledger.types import iso

SHORT_ID = 12
MIN_TEXT = 24  # columns of characters that a wrapping column needs to be readable
GAP = 3  # characters between columns
INDENT = "    "
RecipeArgument = Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override, a.b=c (list items by name or number); repeatable.")
]
UntilOption = Annotated[str | None, typer.Option(help="Last stage, e.g. encode or train.57f; what it needs is kept.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Id(str):
    """An artifact's id, which a terminal shows by its first characters: commands take any unique prefix."""


def console() -> Console:
    return Console(highlight=False)


def print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=_plain)
    sys.stdout.write("\n")


def _plain(value: object) -> str:
    return iso(value) if isinstance(value, datetime) else str(value)


def print_rows(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None, text: Sequence[str] = ()
) -> None:
    """A table of cells; without a terminal one line a row, cells separated by tabs.

    The columns named in `text` wrap. Where the terminal is too narrow for that they go below their row.
    """
    if not sys.stdout.isatty():
        for line in [columns, *rows]:
            sys.stdout.write("\t".join(_cell(value) for value in line) + "\n")
        return
    cells = [[_cell(Id.__str__(v)[:SHORT_ID] if isinstance(v, Id) else v) for v in row] for row in rows]
    widths = [max(len(line[n]) for line in [list(columns), *cells]) for n in range(len(columns))]
    least = [min(w, MIN_TEXT) if name in text else w for name, w in zip(columns, widths, strict=True)]
    shown = console()
    if sum(least) + GAP * len(columns) <= shown.width:
        shown.print(_table(columns, cells, title, text))
    else:
        _print_stacked(columns, cells, title, text, widths, shown.width)


def _table(columns: Sequence[str], cells: list[list[str]], title: str | None, text: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name not in text, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # as it is: brackets are no markup
    return table


def _print_stacked(
    columns: Sequence[str],
    cells: list[list[str]],
    title: str | None,
    text: Sequence[str],
    widths: list[int],
    width: int,
) -> None:
    """Short cells side by side, each long one on lines of its own below them."""
    if title:
        print(title)
    short_ones = [n for n, name in enumerate(columns) if name not in text]
    for row in [list(columns), *cells]:
        head = "  ".join(row[n].ljust(widths[n]) for n in short_ones).rstrip()
        print(head if len(head) <= width else textwrap.fill("  ".join(row[n] for n in short_ones), width))
        for n, cell in enumerate(row):
            if n not in short_ones and cell != "-":
                print(textwrap.fill(cell, width, initial_indent=INDENT, subsequent_indent=INDENT))


def print_facts(facts: Mapping[str, object]) -> None:
    """`name  value` lines of one thing; nested values as compact JSON."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        sys.stdout.write(f"{name.ljust(width)}  {_cell(value)}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\t" in text or "\n" in text else text


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, sort_keys=True, default=_plain)
    return _one_line(str(value))


def short(identity: str | None) -> str:
    return (identity or "-")[:SHORT_ID]


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4 m 05 s`, `2 h 10 m`; `-` when unknown."""
    if seconds is None:
        return "-"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m"


def size(size_bytes: float | None) -> str:
    if size_bytes is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    raise AssertionError("unreachable")
