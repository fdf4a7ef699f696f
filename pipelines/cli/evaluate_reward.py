"""`m4v evaluate reward`: what a reward stage did, by the checkpoints before and after it on the same prompts and seeds.

JSON of `--list`: [run_id, made_at, before, after, alarm]. Of one stage: run_id, before, after (checkpoints), findings
[good (null: open), words], scores {before, after, differences, metrics [name, title, role (reward, held out or null),
before, after {mean, interval, videos, prompts}, change {gain, interval, regression, improvement}, monitor (change after
minus before of a metric without a better direction)], videos} or null, other_scores [[before, after]],
held_out_clips [name, before, after, rise, interval, clips], watch {alarm {step, good, reasons}, verdicts [name, start,
last, limit, departed], problem}. Gains are positive where the checkpoint
after the stage is better.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from pipelines.cli.evaluate import evaluate
from pipelines.cli.output import Id, JsonOption, print_facts, print_json, print_rows
from pipelines.inspection.reward_effect import Listed, RewardEffect, listed, reward_effect, reward_run
from pipelines.inspection.scored import Change, Score
from pipelines.inspection.side_by_side import ScorePair
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

StageArgument = Annotated[
    str | None,
    typer.Argument(metavar="STAGE", help="Reward stage: its run, a pipeline run or its checkpoint; none: the newest."),
]
ListOption = Annotated[bool, typer.Option("--list", help="List the reward stages instead.")]
_MARKS = {True: "good", False: "bad", None: "open"}


@evaluate.command("reward")
def reward(stage: StageArgument = None, list_: ListOption = False, json_: JsonOption = False) -> None:
    """Show what a reward stage changed: its own scores, those held out of it, the local metrics with paired intervals,
    and what the watch against hacking says."""
    workspace = Workspace.open()
    with Ledger.open(workspace.ledger_url) as ledger:
        if list_:
            _show_list(listed(ledger), json_)
            return
        found = reward_effect(ledger, workspace.cache, reward_run(ledger, stage), shown=0)
    if json_:
        print_json(effect_json(found))
    else:
        _print(found)


def effect_json(found: RewardEffect) -> dict[str, Any]:
    return {
        "run_id": found.run.run_id,
        "before": found.before,
        "after": found.after,
        "findings": [asdict(finding) for finding in found.findings],
        "scores": _scores_json(found),
        "other_scores": [list(pair) for pair in found.other_pairs],
        "held_out_clips": [{**asdict(score), "rise": score.rise} for score in found.held_out],
        "watch": {
            "alarm": None if found.alarm is None else asdict(found.alarm),
            "verdicts": [asdict(verdict) for verdict in found.verdicts],
            "problem": found.problem,
        },
    }


def _scores_json(found: RewardEffect) -> dict[str, Any] | None:
    pair = found.pair
    if pair is None:
        return None
    return {
        "before": pair.left.scores_id,
        "after": pair.right.scores_id,
        "differences": list(pair.differences),
        "metrics": [_metric_json(row, found) for row in pair.rows],
        "videos": pair.total_videos,
    }


def _metric_json(row: ScorePair, found: RewardEffect) -> dict[str, Any]:
    name = row.metric.name
    return {
        "name": name,
        "title": row.metric.title,
        "role": found.roles.get(name),
        "before": None if row.left is None else asdict(row.left),
        "after": None if row.right is None else asdict(row.right),
        "change": _change_json(row.change),
        "monitor": _change_json(found.monitors.get(name), directed=False),
    }


def _change_json(change: Change | None, *, directed: bool = True) -> dict[str, Any] | None:
    if change is None:
        return None
    told = {"regression": change.regression, "improvement": change.improvement} if directed else {}
    return {**asdict(change), **told}


def _show_list(rows: list[Listed], json_: bool) -> None:
    if json_:
        print_json([asdict(row) for row in rows])
        return
    cells = [(Id(r.run_id), Id(r.before), Id(r.after), "alarm" if r.alarm else "-", r.made_at) for r in rows]
    print_rows(("stage run", "before", "after", "watch", "made"), cells)


def _print(found: RewardEffect) -> None:
    print_facts({"stage run": found.run.run_id, "before": found.before, "after": found.after})
    if found.pair is not None:
        rows = [
            (r.metric.name, found.roles.get(r.metric.name), _mean(r.left), _mean(r.right), _gain(r, found))
            for r in found.pair.rows
        ]
        print_rows(("metric", "role", "before", "after", "difference"), rows, title="same prompts and seeds")
    if found.held_out:
        told = [
            (s.name, s.before, s.after, f"{s.rise:+.4g} [{s.interval[0]:.4g}, {s.interval[1]:.4g}]", s.clips)
            for s in found.held_out
        ]
        print_rows(("score", "before", "after", "difference", "clips"), told, title="clips not trained on")
    measures = [(v.name, v.start, v.last, v.limit or None, _saves(v.departed)) for v in found.verdicts]
    if measures:
        print_rows(("measure", "at the start", "at the last save", "limit", "out after step"), measures, title="watch")
    for finding in found.findings:
        print(f"{_MARKS[finding.good]:<5} {finding.words}")


def _mean(score: Score | None) -> float | None:
    return None if score is None else score.mean


def _gain(row: ScorePair, found: RewardEffect) -> str | None:
    change = row.change or found.monitors.get(row.metric.name)
    if change is None:
        return None
    mark = "" if row.change is None else " ▼" if change.regression else " ▲" if change.improvement else ""
    return f"{change.gain:+.4g} [{change.interval[0]:.4g}, {change.interval[1]:.4g}]{mark}"


def _saves(departed: tuple[int, ...]) -> str | None:
    return ", ".join(map(str, departed)) or None
