"""Brings the generated rows into a ledger, many at a time."""

from __future__ import annotations

from sqlalchemy import Table, insert, text
from sqlalchemy.orm import Session

from m4v.core.canonical import digest_json
from pipelines.ledger import Ledger
from pipelines.ledger.courses import record_courses
from pipelines.ledger.schema import Base
from pipelines.ledger.stems import load_stems
from tests.benchmarks.ledger.clips import Clips, load_clips
from tests.benchmarks.ledger.history import History, Row, orders, write_history
from tests.benchmarks.ledger.sizes import Sizes
from training.config import OrderConfig
from training.samples import SampleGroup
from training.sampling import SamplingPlan

_IN_ORDER = (
    "artifact", "pipeline_run", "attempt", "stage_run", "run_input", "run_output", "pipeline_run_node", "reuse",
    "channel",
)  # fmt: skip
_AT_ONCE = 5000


def fill(ledger: Ledger, sizes: Sizes) -> tuple[Clips, History]:
    """Write a whole ledger; the same sizes give the same rows."""
    clips = load_clips(ledger, sizes)
    history = write_history(sizes)
    with ledger._db.write(chain=False) as session:
        for table in _IN_ORDER:
            _insert(session, table, history.rows.get(table, []))
    _load_states(ledger, history)
    with ledger._db.write(chain=False) as session:
        record_courses(session, [checkpoint for checkpoint, _ in history.checkpoints])
        load_stems(session, history.stems)
    with ledger._db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return clips, history


def _insert(session: Session, table: str, rows: list[Row]) -> None:
    target = Base.metadata.tables[table]
    if rows and session.get_bind().dialect.name != "sqlite":
        _copy(session, target, rows)
        return
    for start in range(0, len(rows), _AT_ONCE):
        session.execute(insert(target), rows[start : start + _AT_ONCE])


def _copy(session: Session, target: Table, rows: list[Row]) -> None:
    """PostgreSQL takes them several times as fast so; values pass through their columns' types as in any insert."""
    dialect, raw = session.get_bind().dialect, session.connection().connection.driver_connection
    assert raw is not None
    named = [(name, target.c[name].type.bind_processor(dialect)) for name in rows[0]]
    columns = ", ".join(f'"{name}"' for name, _ in named)
    with raw.cursor() as cursor, cursor.copy(f"COPY {target.name} ({columns}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row([process(row[name]) if process else row[name] for name, process in named])


def _load_states(ledger: Ledger, history: History) -> None:
    """Exposure states with the timetables of their orders, as publishing a checkpoint records them."""
    configs = {stage: (config, config.canonical()) for stage, config in orders().items()}
    found: dict[str, Row] = {}
    states: list[Row] = []
    for checkpoint_id, state in history.checkpoints:
        order, dataset = state.pop("order"), state["dataset_id"]
        order_id = None if order is None else digest_json({"dataset": dataset, "order": order})
        if order_id is not None and order_id not in found:
            plan = _plan(ledger, dataset, configs[state["stage"]][0], state["stage"])
            found[order_id] = {"order_id": order_id, "dataset_id": dataset, "config": order, "plan": plan.to_json()}
        values = {**state, "checkpoint_id": checkpoint_id, "order_id": order_id, "seed": str(state["seed"])}
        states.append({**values, "global_batch": {"samples": [256]}})
    with ledger._db.write(chain=False) as session:
        _insert(session, "data_order", list(found.values()))
        _insert(session, "checkpoint_exposure", states)


def _plan(ledger: Ledger, dataset: str, order: OrderConfig, stage: str) -> SamplingPlan:
    groups = [SampleGroup(*group, samples) for group, samples in ledger.groups_of(dataset)]
    return SamplingPlan.of(groups, order, stage)
