"""The checkpoint artifact of a finished stage: weights, exposure state, metrics, validation videos.

Made from the final save alone: it needs no engine, so that a kill here costs nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from m4v.core.artifacts import Artifact
from m4v.core.canonical import canonical_json
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.family import read_checkpoint_config
from training.config import TrainConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.families import family_of
from training.guard import SKIPPED
from training.order import DataOrder
from training.saved import Row, SaveManifest
from training.state import StateStore
from training.validation import video_paths

METRICS, METRICS_TABLE = "metrics.jsonl", "metrics.parquet"


def export_checkpoint(
    context: StageContext,
    config: TrainConfig,
    start: Artifact,
    dataset: Artifact,
    order: DataOrder,
    states: StateStore,
    manifest: SaveManifest,
) -> None:
    """Write the checkpoint's files, its facts and the run's numbers. Rank 0."""
    directory = context.output("checkpoint")
    ema = states.whole(manifest, "ema") if manifest.has_ema else None
    family = family_of(read_checkpoint_config(start.path("config.json")))
    family.save(directory, states.whole(manifest, "master"), ema)
    lines = states.metric_rows(manifest)
    rows = parse_rows(lines)
    skipped = tuple(int(str(row["step"])) for row in rows if SKIPPED in row)
    state = ExposureState(
        stage=config.name,
        dataset_id=dataset.id,
        order=config.order,
        seed=context.seed,
        global_batch=tuple(order.step_size(step).samples for step in order.round),
        cursor=manifest.step,  # fewer than asked for where the hacking watch ended the stage
        init_from=start.id,
        skipped=skipped,
    )
    write_atomic(directory / TRAINING_STATE, canonical_json(state.canonical()))
    write_atomic(directory / METRICS, lines)
    write_atomic(directory / METRICS_TABLE, metrics_table(rows))
    for path in video_paths(config, manifest.step):
        if context.state.exists(path):  # there are fewer where the dataset holds out fewer samples
            (directory / path).parent.mkdir(exist_ok=True)
            write_atomic(directory / path, context.state.read_bytes(path))
    context.summary("checkpoint", {"stage": state.stage, "step": state.cursor, "order": order.summary()})
    sizes = {world_size for _, world_size in manifest.lineage}
    context.metrics(
        {
            "steps": manifest.step,
            "attempts": [list(entry) for entry in manifest.lineage],
            "reproducibility": "bit-exact" if len(sizes) == 1 else "sample-exact",
            **({"updates_not_taken": len(skipped)} if skipped else {}),
        }
    )


def parse_rows(lines: bytes) -> list[Row]:
    """Rows of metrics from JSON lines."""
    return [json.loads(line) for line in lines.splitlines()]


def metrics_table(rows: Sequence[Row]) -> bytes:
    """The rows as a Parquet file: a column for every name that any row has, in order of their first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _column(values: list[object]) -> pa.Array:
    """Whole numbers stay so unless there is a fraction among them; a column without any value is of numbers."""
    kinds = {type(value) for value in values} - {type(None)}
    return pa.array(values, type=pa.float64() if kinds <= {int, float} and kinds != {int} else None)
