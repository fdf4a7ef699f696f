"""A stage over all runs: every execution of it, how long each took and how it ended, and how its measures moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.ledger import AttemptRow, Ledger, RunRow, Status
from pipelines.stages import ALL
from pipelines.web.charts import LineChart, line_chart

SHOWN = 50
MOST = 1000  # on one page
_LOOKED_AT = 20  # of each stage in the list of stages
_TRENDS = 12
_ENDED = (Status.SUCCEEDED,)


@dataclass(frozen=True)
class Trend:
    """A measure by execution, oldest first; `node`: of which node of recipes, where the page shows several."""

    name: str
    chart: LineChart
    first: float
    last: float
    node: str = ""


@dataclass(frozen=True)
class StageHistory:
    """`rows` are newest first. `has_more`: older ones were left out."""

    stage: str
    rows: tuple[AttemptRow, ...]
    runs: dict[str, RunRow]
    nodes: tuple[str, ...]
    trends: tuple[Trend, ...]
    has_more: bool

    def count(self, *states: Status) -> int:
        return sum(row.status in states for row in self.rows)

    @property
    def typical_s(self) -> float | None:
        """Median of those that made their outputs."""
        took = [row.duration_s for row in self.rows if row.status in _ENDED and row.duration_s is not None]
        return median(took) if took else None


@dataclass(frozen=True)
class StageLine:
    """A declared stage and its newest executions, at most `_LOOKED_AT` of them."""

    name: str
    version: int
    newest: AttemptRow | None
    states: Counter[str]
    typical_s: float | None
    looked_at: int


def stage_lines(ledger: Ledger) -> list[StageLine]:
    """Every declared stage, in the order of a pipeline."""
    lines = []
    for spec in ALL:
        rows = ledger.attempts(stage=spec.name, limit=_LOOKED_AT)
        took = [r.duration_s for r in rows if r.status in _ENDED and r.duration_s is not None]
        lines.append(
            StageLine(
                spec.name, spec.version, rows[0] if rows else None, Counter(str(r.status) for r in rows),
                median(took) if took else None, len(rows),
            )
        )  # fmt: skip
    return lines


def is_declared(stage: str) -> bool:
    return any(spec.name == stage for spec in ALL)


def stage_history(
    ledger: Ledger, stage: str, *, node: str = "", recipe: str = "", status: Status | None = None, shown: int = SHOWN
) -> StageHistory:
    """The newest `shown` executions of a stage; `node` narrows them to one node of the recipes."""
    found = ledger.attempts(stage=stage, recipe=recipe or None, status=status, node_id=node or None, limit=shown + 1)
    rows = tuple(found[:shown])
    runs = ledger.stage_runs_of({row.run_id for row in rows if row.run_id})
    return StageHistory(stage, rows, runs, tuple(ledger.node_ids(stage)), _trends(rows, runs), len(found) > shown)


def _trends(rows: Sequence[AttemptRow], runs: dict[str, RunRow]) -> tuple[Trend, ...]:
    """How long each node took; of a single node also what its runs measured."""
    ended = [row for row in reversed(rows) if row.status in _ENDED and row.duration_s is not None]
    nodes = list(dict.fromkeys(row.node_id or row.stage for row in ended))
    trends = []
    for node in nodes:
        took = [row.duration_s or 0.0 for row in ended if (row.node_id or row.stage) == node]
        trends.append(_trend("seconds taken", took, node))
    if len(nodes) == 1:
        measured = [runs[row.run_id].metrics for row in ended if row.run_id in runs]
        for name in dict.fromkeys(name for metrics in measured for name in metrics):
            trends.append(_trend(name, [float(m[name]) for m in measured if _is_number(m.get(name))], ""))
    return tuple(t for t in trends if t is not None)[:_TRENDS]


def _trend(name: str, values: Sequence[float], node: str) -> Trend | None:
    """None for fewer than two values: they have no trend."""
    if len(values) < 2:
        return None
    label = f"{node or 'this stage'}: {name} by execution, oldest first"
    chart = line_chart([float(n) for n in range(1, len(values) + 1)], values, label=label)
    return Trend(name, chart, values[0], values[-1], node) if chart is not None else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
