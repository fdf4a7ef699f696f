"""Stage `ablation`: scores and checkpoints of the variants -> one table, as JSON, CSV and Markdown."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval.ablation.compare import DECIMALS, cells_of, columns_of, stand_ins
from eval.ablation.config import AblationStageConfig, StageRow
from eval.ablation.export import as_csv, as_markdown
from eval.ablation.models import common, count, mixer_tflops, shapes_of
from eval.ablation.paper import TABLES
from eval.ablation.records import (
    ABLATION,
    CSV,
    MARKDOWN,
    AblationTable,
    Cell,
    Column,
    PrintedRow,
    PrintedTable,
    Row,
)
from eval.records import SCORES, ScoreSet, read_record, write_record
from m4v.core.artifacts import Artifact
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.family import AnyCheckpoint, read_checkpoint_config

END_SHARE = 0.1  # of the steps, whose mean is the loss at the end
SUITES = ("scores", "vbench")  # inputs that hold a variant's scores
_DATA = ("stage", "dataset_id", "order", "seed", "global_batch", "cursor", "skipped")  # which sample was seen when


def run(context: StageContext) -> None:
    config = context.config(AblationStageConfig)
    variants = {name: Variant(context, name) for name in config.variants}
    base = variants[str(config.base.variant)]
    rows = []
    for number, row in enumerate(config.rows):
        context.progress.update(number, len(config.rows), "rows")
        rows.append(_row(config, row, variants.get(str(row.variant)), base))
        context.check_drain()
    table = AblationTable(
        name=config.name, title=config.title or (TABLES[config.paper].title if config.paper else config.name),
        baseline=config.base.name, confidence=config.confidence, resamples=config.resamples, seed=context.seed,
        start=config.start, start_from=_origin(base, config.start), stages=config.stages,
        columns=_columns(variants), rows=tuple(rows), paper=printed(config),
    )  # fmt: skip
    directory = context.output("scores")
    write_record(directory / ABLATION, table)
    write_atomic(directory / CSV, as_csv(table).encode())
    write_atomic(directory / MARKDOWN, as_markdown(table).encode())
    facts = {"table": config.name, "paper": config.paper, "variants": len(variants), "rows": len(config.rows)}
    context.summary("scores", {**facts, "left_out": sum(row.left_out is not None for row in config.rows)})
    context.metrics({"variants": len(variants), "comparisons": table.comparisons})
    context.progress.update(len(config.rows), len(config.rows), "rows")


@dataclass(frozen=True)
class Variant:
    """The artifacts of one variant: where it started, its last training stage, what was scored, its scores."""

    context: StageContext
    name: str

    def artifact(self, port: str) -> Artifact:
        return self.context.input(f"{port}.{self.name}")

    @cached_property
    def scores(self) -> dict[str, ScoreSet]:
        """By the input's port; only those that the variant has."""
        ports = [port for port in SUITES if f"{port}.{self.name}" in self.context.inputs]
        return {port: read_record(ScoreSet, self.artifact(port), SCORES) for port in ports}

    @cached_property
    def config(self) -> AnyCheckpoint:
        return read_checkpoint_config(self.artifact("checkpoint").path("config.json"))

    @cached_property
    def shapes(self) -> Any:
        return shapes_of(self.config.model)

    @cached_property
    def training(self) -> dict[str, Any]:
        """`training.json` of the last training stage, before any reward."""
        found: dict[str, Any] = json.loads(self.artifact("trained").path("training.json").read_text())
        return found

    @cached_property
    def losses(self) -> dict[int, float]:
        """Loss by step, of the steps that took an update."""
        lines = self.artifact("trained").path("metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["step"]: float(row["loss"]) for row in rows if row["loss"] is not None and "skipped" not in row}

    def draws_as(self, other: Variant) -> bool:
        """Whether both saw the same samples at the same steps; timesteps and noise follow from those and the seed."""
        return all(self.training.get(name) == other.training.get(name) for name in _DATA)


def _columns(variants: dict[str, Variant]) -> tuple[Column, ...]:
    every = [scores for variant in variants.values() for scores in variant.scores.values()]
    return columns_of(every)


def _row(config: AblationStageConfig, row: StageRow, found: Variant | None, base: Variant) -> Row:
    if found is None:
        return Row(name=row.name, variant=None, left_out=row.left_out, note=row.note)
    cells: dict[str, Cell] = {}
    reasons: list[str] = []
    for port, scores in found.scores.items():
        other = None if found is base else base.scores.get(port)
        made, why = cells_of(scores, other, resamples=config.resamples, confidence=config.confidence)
        cells |= made
        reasons += [why] if why else []
    identity = next(iter(found.scores.values())).identity
    same = found.draws_as(base)
    loss = _end(found.losses)
    return Row(
        name=row.name, variant=row.variant, note=row.note, start=found.artifact("start").id,
        checkpoint=found.artifact("checkpoint").id, cells=cells, not_compared="; ".join(reasons) or None,
        scores=tuple(found.artifact(port).id for port in found.scores), differs=row.differs,
        stand_in=tuple(name for scores in found.scores.values() for name in stand_ins(scores)),
        parameters=count(found.shapes), shared=count(common(found.shapes, base.shapes)),
        tflops=mixer_tflops(found.config.model, identity.frames, identity.height, identity.width),
        steps=found.training["cursor"], loss=loss, same_data=same, loss_gain=_loss_gain(found, base, same),
    )  # fmt: skip


def _end(losses: dict[int, float]) -> float | None:
    """Mean of the last tenth of the steps."""
    last = sorted(losses)[-max(1, round(len(losses) * END_SHARE)) :]
    return round(sum(losses[step] for step in last) / len(last), DECIMALS) if last else None


def _loss_gain(found: Variant, base: Variant, same: bool) -> float | None:
    if found is base or not same:
        return None
    both = found.losses.keys() & base.losses.keys()
    ours, theirs = _end({s: found.losses[s] for s in both}), _end({s: base.losses[s] for s in both})
    return None if ours is None or theirs is None else round(theirs - ours, DECIMALS)


def _origin(base: Variant, start: str | None) -> str | None:
    """The checkpoint that all starts were made from; the baseline's own where it needed no conversion."""
    if start is None:
        return None
    found = json.loads(base.artifact("start").path("training.json").read_text())
    converted: str | None = found["init_from"] if found["stage"] == "convert" else base.artifact("start").id
    return converted


def printed(config: AblationStageConfig) -> PrintedTable | None:
    """What the paper prints in the table that this one repeats."""
    if config.paper is None:
        return None
    table = TABLES[config.paper]
    rows = tuple(PrintedRow(name=row.name, figures=row.figures) for row in table.rows)
    return PrintedTable(source=table.source, columns=table.columns, rows=rows, remarks=table.remarks)
