"""What checkpoints consumed: recording their exposure states, and reading them by line and by dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Select, literal, select, update
from sqlalchemy.orm import Session

from m4v.core.canonical import digest_json
from pipelines.ledger import schema
from pipelines.ledger.clip_load import table_of
from pipelines.ledger.courses import record_courses
from pipelines.ledger.database import Database
from pipelines.ledger.members import ids_in
from pipelines.ledger.schema_exposure import CheckpointExposure, DataOrder
from pipelines.ledger.statements import as_ids, ids_given, is_sqlite
from pipelines.ledger.trained import TrainedStates, trained_states

LONGEST_LINE = 10_000  # checkpoints before one; a ring of them (which no run can make) ends here


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFacts:
    """`ExposureState` as the ledger takes it; `order` is the sampler config, None of an untrained checkpoint."""

    stage: str
    dataset_id: str | None
    order: Mapping[str, Any] | None
    seed: int
    global_batch: Sequence[int]
    cursor: int
    init_from: str | None

    @property
    def order_id(self) -> str | None:
        return None if self.order is None else digest_json({"dataset": self.dataset_id, "order": dict(self.order)})


class StateRow(NamedTuple):
    """A checkpoint with what decides its exposure."""

    checkpoint_id: str
    stage: str
    dataset_id: str | None
    order_id: str | None
    seed: int
    cursor: int
    init_from: str | None


class OrderRow(NamedTuple):
    """A sampler config on a dataset, with its timetable if that is recorded."""

    order_id: str
    dataset_id: str
    config: dict[str, Any]
    plan: dict[str, Any] | None


_COLUMNS = (
    CheckpointExposure.checkpoint_id, CheckpointExposure.stage, CheckpointExposure.dataset_id,
    CheckpointExposure.order_id, CheckpointExposure.seed, CheckpointExposure.cursor, CheckpointExposure.init_from,
)  # fmt: skip


class ExposureOps:
    """The exposure verbs of a Ledger."""

    _db: Database

    def record_exposure(self, checkpoint_id: str, state: StateFacts, plan: Mapping[str, Any] | None) -> None:
        """Keep the state of a checkpoint, before its run is committed; a known one is left as it is, but a
        timetable that was missing is added."""
        order_id = state.order_id
        with self._db.write() as session:  # one writer at a time: two stages may bring the same order at once
            if order_id is not None and state.order is not None and state.dataset_id is not None:
                _record_order(session, order_id, state.dataset_id, state.order, plan)
            if session.get(CheckpointExposure, checkpoint_id) is None:
                session.add(
                    CheckpointExposure(
                        checkpoint_id=checkpoint_id,
                        stage=state.stage,
                        dataset_id=state.dataset_id,
                        order_id=order_id,
                        seed=str(state.seed),
                        global_batch={"samples": list(state.global_batch)},
                        cursor=state.cursor,
                        init_from=state.init_from,
                    )
                )
                record_courses(session, [checkpoint_id])

    def checkpoints_without_exposure(self) -> list[str]:
        """Recorded checkpoints whose state the ledger does not have, oldest first."""
        known = select(CheckpointExposure.checkpoint_id)
        query = select(schema.Artifact.artifact_id).where(schema.Artifact.kind == "checkpoint")
        query = query.where(schema.Artifact.artifact_id.not_in(known)).order_by(schema.Artifact.recorded_at)
        with self._db.read() as session:
            return list(session.scalars(query))

    def orders_without_plan(self) -> list[OrderRow]:
        with self._db.read() as session:
            return _orders(session, select(DataOrder).where(DataOrder.plan.is_(None)))

    def record_plan(self, order_id: str, plan: Mapping[str, Any]) -> None:
        with self._db.write(chain=False) as session:
            session.execute(update(DataOrder).where(DataOrder.order_id == order_id).values(plan=dict(plan)))

    def training_line(self, checkpoint_id: str) -> list[StateRow]:
        """The states of a checkpoint and of those it started from, itself first; empty when it has none."""
        state = CheckpointExposure
        line = select(literal(checkpoint_id).label("id"), literal(0).label("depth")).cte("line", recursive=True)
        line = line.union_all(
            select(state.init_from, line.c.depth + 1)
            .join(line, state.checkpoint_id == line.c.id)
            .where(state.init_from.is_not(None), line.c.depth < LONGEST_LINE)
        )
        query = select(*_COLUMNS).join(line, line.c.id == state.checkpoint_id).order_by(line.c.depth)
        with self._db.read() as session:
            return _state_rows(session, query)

    def trained_on(self, dataset_ids: Iterable[str]) -> tuple[TrainedStates, list[str]]:
        """Every recorded checkpoint whose line trained on one of these datasets; and the ids of recorded checkpoints
        whose state the ledger does not have."""
        with self._db.read() as session:
            return trained_states(session, set(dataset_ids))

    def data_orders(self, order_ids: Iterable[str]) -> dict[str, OrderRow]:
        with self._db.read() as session:
            wanted = select(DataOrder).where(DataOrder.order_id.in_(ids_in(session, order_ids)))
            return {row.order_id: row for row in _orders(session, wanted)}

    def data_plans(self, order_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The recorded timetables of data orders; those that have none are left out."""
        with self._db.read() as session:
            rows = session.execute(_plans(is_sqlite(session)), {"ids": as_ids(order_ids)})
            return {order_id: plan for order_id, plan in rows if plan is not None}


@cache
def _plans(sqlite: bool) -> Select[Any]:
    order = table_of(DataOrder).c
    return select(order.order_id, order.plan).where(ids_given(sqlite, order.order_id, "ids"))


def _record_order(
    session: Session, order_id: str, dataset_id: str, config: Mapping[str, Any], plan: Mapping[str, Any] | None
) -> None:
    row = session.get(DataOrder, order_id)
    if row is None:
        row = DataOrder(order_id=order_id, dataset_id=dataset_id, config=dict(config), plan=None)
        session.add(row)
    if row.plan is None and plan is not None:
        row.plan = dict(plan)


def _state_rows(session: Session, query: Select[Any]) -> list[StateRow]:
    return [StateRow(c, stage, d, o, int(seed), n, i) for c, stage, d, o, seed, n, i in session.execute(query)]


def _orders(session: Session, query: Select[tuple[DataOrder]]) -> list[OrderRow]:
    return [OrderRow(r.order_id, r.dataset_id, r.config, r.plan) for r in session.scalars(query)]
