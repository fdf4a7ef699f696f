"""What the training stages of a pipeline run took: steps, time and memory of each, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cli.output import duration, print_rows, size
from pipelines.ledger import Ledger, RunRow

COLUMNS = ("stage", "steps", "took", "start", "a step", "saves", "GPU memory", "host memory")
_STEP = "step_seconds_median"


def print_measured(ledger: Ledger, runs: Mapping[str, RunRow]) -> None:
    """A table of those stage runs, by node id, that have trained; nothing without any.

    `took`: all attempts of the stage run, also of an earlier pipeline run; `a step`: the median without the first,
    saves and validation; memory: the peaks of rank 0.
    """
    trained = {node: run for node, run in runs.items() if _STEP in run.metrics}
    if trained:
        print("\ntraining, as measured")
        print_rows(COLUMNS, [(node, *_cells(run.metrics, _took(ledger, run))) for node, run in trained.items()])


def print_measured_nodes(ledger: Ledger, pipeline_run_id: str) -> None:
    """The table of a pipeline run."""
    nodes = ledger.nodes(pipeline_run_id)
    print_measured(ledger, {node.node_id: ledger.run(node.run_id) for node in nodes if node.run_id is not None})


def _took(ledger: Ledger, run: RunRow) -> float:
    return sum(attempt.duration_s or 0.0 for attempt in ledger.attempts(stage_key=run.stage_key, limit=None))


def _cells(metrics: Mapping[str, Any], took: float) -> Sequence[object]:
    return (
        metrics.get("steps"), duration(took), duration(metrics.get("start_seconds")), duration(metrics[_STEP]),
        duration(metrics.get("save_seconds")), size(metrics.get("gpu_peak_bytes")), size(metrics.get("rss_peak_bytes")),
    )  # fmt: skip
