"""`m4v evaluate leaderboard`: checkpoints by their scores, and published systems beside them.

JSON: boards [protocol, facts {name: words}, metrics [name, title, unit, higher_is_better, chance, description],
figures [name], entries], unreadable [scores_id, reason], limited, published {unit, sources, rows}. An entry:
checkpoint, system (name of another system whose imported videos were measured, else null), stage, scores_id,
samples_id, run_id, evaluated_at, videos, channels, gates [artifact_id, run_id, baseline, passed, refused], scores and
figures {name: mean, interval, videos, prompts}, failed {metric: reason}, stand_in [name:
measured with stand-in weights, so no result whatever the number], against (scores id), changes {metric: gain, interval,
regression, improvement}. Figures and scores of VBench are fractions, published rows percent. Boards are protocols:
entries of two boards differ in more than the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from eval.records import STAND_IN
from eval.vbench.published import FIGURES, published
from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import Id, JsonOption, print_facts, print_json, print_rows
from pipelines.inspection.leaderboard import NEWEST, Board, Change, Entry, Leaderboard, Score, leaderboard
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

WORSE, BETTER = "▼", "▲"
_MARK = "(stand-in)"
SortOption = Annotated[
    str | None, typer.Option(help="Metric or figure to sort by, e.g. vbench.total; default: newest.")
]
NewestOption = Annotated[int, typer.Option(help="Evaluations to look at, newest first.", min=1)]


@evaluate.command("leaderboard")
def leaderboard_(sort: SortOption = None, newest: NewestOption = NEWEST, json_: JsonOption = False) -> None:
    """List checkpoints by their scores with 95 % intervals, one table a protocol; ▼ and ▲ mark what is significantly
    worse or better than a channel's checkpoint, else than the evaluation before."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        found = leaderboard(ledger, workspace.cache, newest=newest)
    if json_:
        print_json(leaderboard_json(found, sort))
        return
    for board in found.boards:
        _print_board(board, sort)
    for identity, reason in found.unreadable:
        print(f"scores {identity[:12]} are left out: {reason}")
    if found.limited:
        print(f"only the newest {newest} evaluations: --newest N looks at more")
    _print_published()


def leaderboard_json(found: Leaderboard, sort: str | None = None) -> dict[str, Any]:
    return {
        "boards": [_board_json(board, sort) for board in found.boards],
        "unreadable": [{"scores_id": identity, "reason": reason} for identity, reason in found.unreadable],
        "limited": found.limited,
        "published": published().canonical(),
    }


def _board_json(board: Board, sort: str | None) -> dict[str, Any]:
    return {
        "protocol": board.protocol,
        "facts": dict(board.facts),
        "metrics": [asdict(metric) for metric in board.metrics],
        "figures": list(board.figures),
        "entries": [_entry_json(entry) for entry in board.sorted_by(sort)],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    changes = {
        name: {**asdict(change), "regression": change.regression, "improvement": change.improvement}
        for name, change in entry.changes.items()
    }
    return {**asdict(entry), "changes": changes}


def _print_board(board: Board, sort: str | None) -> None:
    names = [*board.figures, *(metric.name for metric in board.metrics)]
    columns = ("checkpoint", "stage", "channels", "gate", *names)
    rows = [_row(entry, names) for entry in board.sorted_by(sort)]
    print_rows(columns, rows, title=f"protocol {board.protocol[:12]}", text=("channels",))
    print_facts(board.facts)
    for entry in board.entries:
        for name, reason in entry.failed.items():
            print(f"{_name(entry)}: {name} has no score: {reason}")
        if entry.stand_in:
            print(f"{_name(entry)}: {STAND_IN}: {', '.join(entry.stand_in)}")
    print()


def _row(entry: Entry, names: Sequence[str]) -> list[object]:
    gate = "-" if not entry.gates else "passed" if entry.gates[0].passed else "refused"
    cells = [
        _shown(entry.score(name), entry.changes.get(name)) + (f" {_MARK}" if name in entry.stand_in else "")
        for name in names
    ]
    named = entry.system if entry.system is not None else Id(entry.checkpoint)
    return [named, "imported" if entry.system is not None else entry.stage, ", ".join(entry.channels), gate, *cells]


def _name(entry: Entry) -> str:
    return entry.system or entry.checkpoint[:12]


def _shown(score: Score | None, change: Change | None) -> str:
    if score is None or score.mean is None:
        return "-"
    text = f"{score.mean:.4g}"
    if score.interval is not None:
        text += f" [{score.interval[0]:.4g}, {score.interval[1]:.4g}]"
    mark = "" if change is None else WORSE if change.regression else BETTER if change.improvement else ""
    return f"{text} {mark}".rstrip()


def _print_published() -> None:
    found = published()
    shown = (*FIGURES, "motion_smoothness", "dynamic_degree", "aesthetic_quality", "imaging_quality")
    rows = [
        (row.system, row.source, *(f"{row.all_figures[name]:.2f}" for name in shown), row.note) for row in found.rows
    ]
    print_rows(
        ("system", "source", *shown, "note"), rows, text=("note",),
        title="VBench, published (percent); protocols of their own, never subtracted from ours",
    )  # fmt: skip
    for name, words in found.sources.items():
        print(f"{name}: {words}")
