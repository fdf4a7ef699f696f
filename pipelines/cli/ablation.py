"""`m4v evaluate ablation`: the tables of ablations, and one of them as a table, JSON, CSV or Markdown.

JSON of the list: [artifact_id, run_id, made_at, name, paper, variants, rows, left_out]; of a table: artifact_id and the
fields of `eval.ablation.records.AblationTable` (gains and their intervals are to the baseline row, positive = better;
`paper` has the figures as printed, in percent, which nothing is subtracted from).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from eval.ablation.export import as_csv, as_markdown, flop, reading
from eval.ablation.records import AblationTable, Cell, Row
from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import JsonOption, print_json, print_rows
from pipelines.inspection.ablations import listed, table_of
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

TableArgument = Annotated[
    str | None, typer.Argument(metavar="TABLE", help="Table in the ledger: an id or its beginning; none: list them.")
]
FormatOption = Annotated[
    Literal["csv", "markdown"] | None, typer.Option("--format", help="Print the table in this form, whole figures.")
]
MARKS = {"better": " ▲", "worse": " ▼"}


@evaluate.command("ablation")
def ablation(table: TableArgument = None, format_: FormatOption = None, json_: JsonOption = False) -> None:
    """List tables of ablations (a recipe's section `ablation` makes them), or show one: variants trained alike, with
    their intervals; ▲ and ▼ mark what is significantly better or worse than the baseline row."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        if table is None:
            rows = listed(ledger)
        else:
            artifact, found = table_of(ledger, workspace.cache, table)
    if table is None:
        if json_:
            print_json([asdict(row) for row in rows])
            return
        columns = ("artifact", "table", "rows", "left out", "variants", "made")
        print_rows(columns, [(r.artifact_id[:12], r.name, r.rows, r.left_out, r.variants, r.made_at) for r in rows])
    elif json_:
        print_json({"artifact_id": artifact.artifact_id, **found.canonical()})
    elif format_ is not None:
        sys.stdout.write(as_csv(found) if format_ == "csv" else as_markdown(found))
    else:
        _print(found)


def _print(table: AblationTable) -> None:
    columns = [c for c in table.columns if any(c.name in row.cells for row in table.rows)]
    head = ("row", "parameters", "mixers", "loss", *(c.name for c in columns), "remark")
    rows = [_cells(row, [c.name for c in columns]) for row in table.rows]
    print_rows(head, rows, title=table.title, text=("remark",))
    for words in reading(table):
        print(words)
    if table.paper is None:
        return
    print()
    printed = [(row.name, *row.words) for row in table.paper.rows]
    print_rows(("row", *table.paper.columns), printed, title=f"As printed: {table.paper.source}")
    for words in table.paper.remarks:
        print(words)


def _cells(row: Row, names: list[str]) -> list[object]:
    if row.variant is None:
        return [row.name, *[None] * (len(names) + 3), f"not run: {row.left_out}"]
    loss = None if row.loss is None else f"{row.loss:.4f}"
    remark = "; ".join(words for words in (row.note, row.not_compared and f"not compared: {row.not_compared}") if words)
    cells = [("stand-in " if name in row.stand_in else "") + (_shown(row.cells.get(name)) or "-") for name in names]
    return [row.name, row.parameters, flop(row.tflops), loss, *cells, remark]


def _shown(cell: Cell | None) -> str | None:
    if cell is None or cell.value is None:
        return None
    if cell.gain is None:
        return f"{cell.value:.4g}"
    return f"{cell.value:.4g} ({cell.gain:+.3g}){MARKS.get(cell.verdict, '')}"
