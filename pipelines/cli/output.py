"""How commands print: rich tables on a terminal, plain tab-separated lines otherwise, JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SHORT_ID = 12


def console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def print_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table of text cells; without a terminal one line a row, cells separated by tabs."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            sys.stdout.write("\t".join(line) + "\n")
        return
    table = Table(*columns, title=title, title_justify="left", pad_edge=False)
    for row in cells:
        table.add_row(*row)
    console().print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """`name  value` lines of one thing; nested values as compact JSON."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        sys.stdout.write(f"{name.ljust(width)}  {_cell(value)}\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def short(identity: str | None) -> str:
    return (identity or "-")[:SHORT_ID]


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4 m 05 s`, `2 h 10 m`; `-` when unknown."""
    if seconds is None:
        return "-"
    if seconds < 60:
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
