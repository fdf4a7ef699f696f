"""`m4v evaluate`: the group, and `totals`: VBench's Total, Quality and Semantic of a file of raw scores.

JSON of `totals`: unit, total, quality, semantic (in the unit; null where a dimension is missing), terms (dimension,
group, weight, raw, normalised), missing {group: [dimension]}, warnings, source.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from eval.vbench.totals import SCALE, Totals, read_scores, totals
from pipelines.cli.output import JsonOption, print_json, print_rows

ScoresArgument = Annotated[Path, typer.Argument(help="JSON file {dimension: raw score}.")]
UnitOption = Annotated[
    Literal["percent", "fraction"], typer.Option(help="Unit of the raw scores, and of the totals that are printed.")
]
evaluate = typer.Typer(help="Evaluation: VBench, its totals and the leaderboard.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    import pipelines.cli.ablation
    import pipelines.cli.evaluate_import
    import pipelines.cli.evaluate_leaderboard
    import pipelines.cli.evaluate_reward
    import pipelines.cli.evaluate_run
    import pipelines.cli.evaluate_setup  # noqa: F401 - each adds its verb

    app.add_typer(evaluate, name="evaluate")


@evaluate.command("totals")
def totals_(file: ScoresArgument, unit: UnitOption = "percent", json_: JsonOption = False) -> None:
    """Work out VBench's totals from raw scores by dimension; a total that lacks a dimension is absent, not low."""
    found = totals(read_scores(file), unit, str(file))
    if json_:
        print_json(found.canonical())
        return
    scale = SCALE[unit]
    rows = [(t.group, t.dimension, f"{t.weight:g}", _shown(t.raw, scale), f"{t.normalised:.4f}") for t in found.terms]
    print_rows(("group", "dimension", "weight", f"raw ({unit})", "term"), rows)
    for name in ("total", "quality", "semantic"):
        value = getattr(found, name)
        print(f"{name:<9} {'absent' if value is None else _shown(value, scale)}{'' if value is None else ' ' + unit}")
    _print_notes(found)


def _shown(value: float, scale: float) -> str:
    return f"{value:.2f}" if scale > 1 else f"{value:.4f}"


def _print_notes(found: Totals) -> None:
    for group, names in found.missing.items():
        if names:
            sys.stderr.write(f"missing for {group} and total: {', '.join(names)}\n")
    for words in found.warnings:
        sys.stderr.write(f"warning: {words}\n")
