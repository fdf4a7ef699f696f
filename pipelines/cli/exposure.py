"""`m4v lineage exposure`: what a checkpoint consumed, and which steps saw a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from pipelines.cli.artifacts import ArtifactArgument
from pipelines.cli.output import Id, JsonOption, print_json, print_rows
from pipelines.cli.runs import open_ledger
from pipelines.exposure import ClipVerdict, StageDraws, clip_exposure, summarise
from pipelines.membership import parse_selector

NOT_HELD = "not held"
_DRAWN = ("stage", "checkpoint", "dataset", "steps", "samples drawn", "distinct", "of", "epochs")
_USED = ("clip", "verdict", "stage", "checkpoint", "uses", "first step", "last step")


def exposure(
    identity: ArtifactArgument,
    clips: Annotated[
        list[str] | None, typer.Argument(help="CLIP, SOURCE, SOURCE/SOURCE_ID, URL or HASH; none: a summary.")
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="List every step that used a clip.")] = False,
    json_: JsonOption = False,
) -> None:
    """What each stage of a checkpoint's line consumed; with clips, which steps saw them."""
    with open_ledger() as ledger:
        if not clips:
            drawn = summarise(ledger, identity)
        else:
            verdicts = clip_exposure(ledger, identity, parse_selector(clips), with_steps=steps)
    if not clips:
        print_json({"stages": [asdict(stage) for stage in drawn]}) if json_ else _print_draws(drawn)
    elif json_:
        print_json({"clips": [verdict.to_json() for verdict in verdicts]})
    else:
        _print_verdicts(verdicts, steps)


def _print_draws(stages: Sequence[StageDraws]) -> None:
    rows = [
        (
            stage.stage,
            Id(stage.checkpoint_id),
            Id(stage.dataset_id) if stage.dataset_id else None,
            stage.steps,
            stage.samples,
            stage.distinct,
            stage.available,
            stage.epochs,
        )
        for stage in stages
    ]
    print_rows(_DRAWN, rows)


def _print_verdicts(verdicts: Sequence[ClipVerdict], steps: bool) -> None:
    rows: list[tuple[object, ...]] = []
    for verdict in verdicts:
        # Stages that never trained on the clip's datasets say nothing about it.
        shown = [stage for stage in verdict.stages if stage.held]
        if not shown:
            rows.append((Id(verdict.clip.clip_id), NOT_HELD, None, None, 0, None, None, None))
        for stage in shown:
            listed = " ".join(map(str, stage.steps or ()))
            rows.append(
                (
                    Id(verdict.clip.clip_id),
                    verdict.verdict or NOT_HELD,
                    stage.stage,
                    Id(stage.checkpoint_id),
                    stage.uses,
                    stage.first_step,
                    stage.last_step,
                    listed,
                )
            )
    columns = (*_USED, "steps") if steps else _USED
    print_rows(columns, [row[: len(columns)] for row in rows], text=("steps",))
