"""Exposure states of checkpoints: read from `training.json`, kept in the ledger with the timetable of their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError, M4VError
from m4v.core.storage import Storage
from pipelines.exposure.uses import plan_on
from pipelines.ledger import Ledger
from pipelines.ledger.exposures import StateFacts
from training.config import OrderConfig
from training.exposure import TRAINING_STATE, ExposureState
from training.sampling import SamplingPlan


def read_state(storage: Storage) -> ExposureState:
    """The state in a checkpoint's folder; raises DataIntegrityError when there is none or it does not parse."""
    if not storage.exists(TRAINING_STATE):
        raise DataIntegrityError(f"checkpoint has no {TRAINING_STATE}", where=storage.uri)
    try:
        return ExposureState.model_validate_json(storage.read_bytes(TRAINING_STATE))
    except ValidationError as error:
        raise DataIntegrityError(
            f"{TRAINING_STATE} does not parse: {error.errors()[0]['msg']}",
            where=storage.uri,
            next_step="m4v artifacts verify",
        ) from None


def record_state(ledger: Ledger, checkpoint_id: str, storage: Storage) -> None:
    """Keep a published checkpoint's state in the ledger. Safe to repeat; a checkpoint whose run is never committed
    costs a row that nothing reads."""
    state = read_state(storage)
    facts = StateFacts(
        stage=state.stage,
        dataset_id=state.dataset_id,
        order=None if state.order is None else state.order.canonical(),
        seed=state.seed,
        global_batch=state.global_batch,
        cursor=state.cursor,
        init_from=state.init_from,
    )
    plan = None
    if state.order is not None and state.dataset_id is not None:
        plan = plan_of(ledger, state.dataset_id, state.order, state.stage)
    ledger.record_exposure(checkpoint_id, facts, None if plan is None else plan.to_json())


def plan_of(ledger: Ledger, dataset_id: str, order: OrderConfig, stage: str) -> SamplingPlan | None:
    """The timetable of an order on a dataset; None when the dataset is not in the clip index yet."""
    return plan_on(ledger, dataset_id, order, stage) if ledger.is_indexed(dataset_id, ArtifactKind.DATASET) else None


def record_missing_states(ledger: Ledger) -> Iterator[tuple[str, M4VError | None]]:
    """Record the states of checkpoints that were committed before the ledger kept them, then timetables of datasets
    that were indexed since; tells each checkpoint, and why one cannot be read, which is passed over."""
    for checkpoint_id in ledger.checkpoints_without_exposure():
        row = ledger.artifact(checkpoint_id, ArtifactKind.CHECKPOINT)
        try:
            if row.deletion is not None:
                raise DataIntegrityError("its bytes were deleted before its exposure state was read", where=row.uri)
            record_state(ledger, checkpoint_id, Storage(row.uri))
            yield checkpoint_id, None
        except (DataIntegrityError, InputError) as error:
            yield checkpoint_id, error
    for order in ledger.orders_without_plan():
        plan = plan_of(ledger, order.dataset_id, OrderConfig.model_validate(order.config), "training")
        if plan is not None:
            ledger.record_plan(order.order_id, plan.to_json())


def record_outputs(ledger: Ledger, outputs: Iterable[tuple[str, ArtifactKind, str]]) -> None:
    """`record_state` for the checkpoints among published outputs (id, kind, URI), before their run is committed.

    One that no stage of ours trained has no state."""
    for artifact_id, kind, uri in outputs:
        if kind is ArtifactKind.CHECKPOINT and Storage(uri).exists(TRAINING_STATE):
            record_state(ledger, artifact_id, Storage(uri))
