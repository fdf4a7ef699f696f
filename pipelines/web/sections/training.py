"""Loss curves and facts of every training stage, from the checkpoints' own metrics files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError
from pipelines.web.charts import LineChart, line_chart
from pipelines.web.facts import RunFacts
from pipelines.web.sections.inputs import ReportInputs, Row

METRICS = "metrics.jsonl"
SKIPPED = "skipped"  # in the row of a step that took no update: why
_PLAIN = {"step", "loss", "lr", "tokens", "samples", "media", SKIPPED}
_END_SHARE = 0.1
MIN_STEPS = 20  # below it, whether the loss fell is noise


@dataclass(frozen=True)
class Change:
    """Median of the first and the last tenth of the steps."""

    first: float
    last: float

    @property
    def share(self) -> float:
        return (self.last - self.first) / abs(self.first) if self.first else 0.0


@dataclass(frozen=True)
class StageCurves:
    name: str
    checkpoint: str
    node_id: str
    steps: int
    tokens: int
    loss: Change | None
    chart: LineChart | None
    others: tuple[tuple[str, LineChart, Change], ...]
    media: str
    seconds: float | None
    skipped: tuple[tuple[int, str], ...]
    facts: tuple[tuple[str, str], ...]
    rewarded: bool = False

    @property
    def tells(self) -> bool:
        """Whether a loss that fell or rose says how training went: not in a few steps, nor where a reward is bought
        with it."""
        return self.loss is not None and self.steps >= MIN_STEPS and not self.rewarded


def gather(inputs: ReportInputs, facts: RunFacts) -> list[StageCurves]:
    return [_stage(name, artifact, facts) for name, artifact in inputs.checkpoints]


def _stage(name: str, artifact: Artifact, facts: RunFacts) -> StageCurves:
    rows = read_metrics(artifact)
    node = facts.node(f"train.{name}") or facts.node(name)
    losses = [loss for _, loss in losses_of(rows)]
    return StageCurves(
        name=name,
        checkpoint=artifact.id,
        node_id=node.node_id if node else "",
        steps=len(rows),
        tokens=int(sum(r.get("tokens") or 0 for r in rows)),
        loss=change_of(losses) if losses else None,
        chart=loss_chart(name, rows),
        others=other_charts(name, rows),
        media=_media(rows),
        seconds=node.duration_s if node else None,
        skipped=skipped_steps(rows),
        facts=_facts(artifact),
        rewarded=any("reward" in row for row in rows),
    )


def loss_chart(name: str, rows: Sequence[Row]) -> LineChart | None:
    """The loss by step; None without any."""
    series = losses_of(rows)
    return line_chart(*zip(*series, strict=True), label=f"{name}: loss by step") if series else None


def losses_of(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(step, loss) of the steps that took an update."""
    return [(float(r["step"]), float(r["loss"])) for r in rows if r["loss"] is not None and SKIPPED not in r]


def skipped_steps(rows: Sequence[Row]) -> tuple[tuple[int, str], ...]:
    """Steps that took no update, and why."""
    return tuple((int(r["step"]), str(r[SKIPPED])) for r in rows if SKIPPED in r)


def other_charts(name: str, rows: Sequence[Row]) -> tuple[tuple[str, LineChart, Change], ...]:
    """Whatever else was measured at each step: name, curve, how it changed."""
    charts = []
    for key in dict.fromkeys(k for r in rows for k in r if k not in _PLAIN):
        series = [(float(r["step"]), float(r[key])) for r in rows if _is_number(r.get(key))]
        chart = line_chart(*zip(*series, strict=True), label=f"{name}: {key}") if series else None
        if chart is not None:
            charts.append((key, chart, change_of([v for _, v in series])))
    return tuple(charts)


def read_metrics(artifact: Artifact) -> list[Row]:
    """Rows of `metrics.jsonl`; [] for a checkpoint that was not trained."""
    if METRICS not in artifact.names():
        return []
    rows: list[Row] = []
    for number, line in enumerate(artifact.path(METRICS).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            loss = row["loss"]  # null where a step that took no update had none
            rows.append({**row, "step": row["step"], "loss": None if loss is None else float(loss)})
        except (ValueError, KeyError, TypeError) as error:
            raise DataIntegrityError(f"line {number} does not parse: {error}", where=METRICS) from None
    return rows


def change_of(values: Sequence[float]) -> Change:
    count = max(1, round(len(values) * _END_SHARE))
    return Change(statistics.median(values[:count]), statistics.median(values[-count:]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _media(rows: Sequence[Row]) -> str:
    """How many steps saw videos and how many images."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.get("media"):
            counts[str(row["media"])] = counts.get(str(row["media"]), 0) + 1
    return ", ".join(f"{n} {media} steps" for media, n in sorted(counts.items(), reverse=True))


def _facts(artifact: Artifact) -> tuple[tuple[str, str], ...]:
    """A few lines of `training.json`, as it has them."""
    if "training.json" not in artifact.names():
        return ()
    data = json.loads(artifact.path("training.json").read_text())
    wanted = ("cursor", "global_batch", "seed", "dataset", "init_from", "stage")
    return tuple((k, str(data[k])) for k in wanted if isinstance(data.get(k), str | int))
