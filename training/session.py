"""A training stage from its inputs to its checkpoint artifact: plan, resume, train, export.

Shared by `train` and `reward`, which differ in their objective only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors import safe_open
from torch import distributed

from m4v.checkpoint import load_checkpoint, read_config, save_checkpoint
from m4v.config import CheckpointConfig
from m4v.core.artifacts import Artifact
from m4v.core.canonical import canonical_json
from m4v.core.errors import ConfigError
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import StageContext
from m4v.core.storage import write_atomic
from m4v.flow.schedule import PyramidSchedule
from training.config import TrainConfig
from training.ema import Ema
from training.engine import DeepSpeedEngine, device_of_rank, init_process_group
from training.exposure import TRAINING_STATE, ExposureState, rows_of
from training.loader import INDEX_COLUMNS, Collator, SampleStore, Text
from training.objective import Objective
from training.order import DataOrder, check_world_size
from training.samples import COLUMNS
from training.state import SaveManifest, StateStore
from training.trainer import Trainer, shards_of

METRICS = "metrics.jsonl"
DATASET, NULL_TEXT = "dataset.json", "null_text.safetensors"  # beside the index of a dataset version
ObjectiveMaker = Callable[[CheckpointConfig], Objective]


@dataclass(frozen=True)
class Session:
    """Inputs of a stage run on one rank."""

    context: StageContext
    config: TrainConfig
    dataset: Artifact
    start: Artifact
    index: pa.Table
    order: DataOrder
    states: StateStore


def run_training(context: StageContext, config: TrainConfig, objective: ObjectiveMaker) -> None:
    """Train the stage and write its checkpoint on rank 0. Safe to kill and run again at any moment."""
    began = time.perf_counter()
    session, device = open_session(context, config), device_of_rank(context.resources.device)
    init_process_group(context.rank, context.world_size, config.engine.timeout_s, device)
    try:
        manifest = _agree_on_save(session)
        if manifest is None or manifest.step < config.steps:
            trainer = _start(session, manifest, objective, device)
            context.metrics({"start_seconds": time.perf_counter() - began})
            manifest = trainer.run()
            context.metrics(trainer.speed.summary())
        if context.rank == 0 and manifest is not None:
            _export(session, manifest)
    finally:
        distributed.destroy_process_group()


def open_session(context: StageContext, config: TrainConfig) -> Session:
    """Read the index and plan the data order; raises ConfigError when dataset, ranks and config disagree."""
    check_world_size(config.order, context.world_size)
    dataset, start = context.input("dataset"), context.input("checkpoint")
    index = read_index(dataset.path(INDEX), dict.fromkeys((*COLUMNS, *INDEX_COLUMNS)))
    order = DataOrder(rows_of(index), config.order, context.seed, config.name)
    states = StateStore(context.state, config.keep_saves, context.request.attempt_id)
    return Session(context, config, dataset, start, index, order, states)


def _agree_on_save(session: Session) -> SaveManifest | None:
    """The newest verified save, chosen by rank 0 for all."""
    chosen: list[str | None] = [None]
    if session.context.rank == 0:
        session.states.drop_unfinished()
        manifest = session.states.newest_verified()
        chosen = [manifest.model_dump_json() if manifest is not None else None]
    distributed.broadcast_object_list(chosen)
    return None if chosen[0] is None else SaveManifest.model_validate_json(chosen[0])


def _start(session: Session, manifest: SaveManifest | None, objective: ObjectiveMaker, device: torch.device) -> Trainer:
    context, config = session.context, session.config
    model, checkpoint = load_checkpoint(session.start.path, ema=config.start_from == "ema")
    check_encoders(session.dataset, checkpoint)
    made = objective(checkpoint)
    if manifest is not None:
        model.load_state_dict(session.states.whole(manifest, "master"))
    engine = DeepSpeedEngine(model, config.optimizer, config.engine, config.order.packs // context.world_size, device)
    ema = Ema(engine.fragments(), config.ema_decay) if config.ema_decay > 0 else None
    step = 0 if manifest is None else manifest.step
    here = ((step, context.world_size),)
    before = () if manifest is None else tuple(e for e in manifest.lineage if e[0] < step)
    trainer = Trainer(
        context=context,
        config=config,
        order=session.order,
        collate=_collator(session, checkpoint, made),
        objective=made,
        engine=engine,
        ema=ema,
        states=session.states,
        step=step,
        lineage=before + here,
        metric_files=() if manifest is None else manifest.metrics,
    )
    if manifest is not None:
        session.states.load_into(manifest, shards_of(engine, ema))
        engine.set_adam_step(step)
    return trainer


def _collator(session: Session, checkpoint: CheckpointConfig, objective: Objective) -> Collator:
    with safe_open(session.dataset.path(NULL_TEXT), framework="pt") as null:
        null_text = Text(*(null.get_tensor(key)[0] for key in Text._fields))
    return Collator(
        store=SampleStore(session.dataset.path, session.index),
        schedule=PyramidSchedule(checkpoint.schedule),
        null_text=null_text,
        seed=session.context.seed,
        stage=session.config.name,
        text_drop=session.config.text_drop,
        high_window=objective.high_window,
        with_captions=objective.needs_captions,
    )


def check_encoders(dataset: Artifact, checkpoint: CheckpointConfig) -> None:
    """Raise ConfigError when the dataset was encoded with another codec or text encoder than the model's."""
    facts = json.loads(dataset.path(DATASET).read_bytes())
    for name, expected in (("codec", checkpoint.codec), ("text_encoder", checkpoint.text_encoder)):
        if facts[name]["config"] != expected:
            raise ConfigError(
                f"dataset and checkpoint have different {name} settings",
                value=facts[name]["config"],
                where=f"checkpoint has {expected}",
                next_step=f"give `encode` and `init` the same {name} section",
            )


def _export(session: Session, manifest: SaveManifest) -> None:
    """Write the checkpoint artifact from the final save: needs no engine, so a kill here costs nothing."""
    context, states = session.context, session.states
    directory = context.output("checkpoint")
    ema = states.whole(manifest, "ema") if manifest.has_ema else None
    save_checkpoint(directory, read_config(session.start.path("config.json")), states.whole(manifest, "master"), ema)
    state = exposure_state(session)
    write_atomic(directory / TRAINING_STATE, canonical_json(state.canonical()))
    write_atomic(directory / METRICS, states.metric_rows(manifest))
    context.summary("checkpoint", {"stage": state.stage, "step": state.cursor, "order": session.order.summary()})
    sizes = {world_size for _, world_size in manifest.lineage}
    context.metrics(
        {
            "steps": manifest.step,
            "attempts": [list(entry) for entry in manifest.lineage],
            "reproducibility": "bit-exact" if len(sizes) == 1 else "sample-exact",
        }
    )


def exposure_state(session: Session) -> ExposureState:
    config = session.config
    return ExposureState(
        stage=config.name,
        dataset_id=session.dataset.id,
        order=config.order,
        seed=session.context.seed,
        global_batch=tuple(session.order.step_size(step).samples for step in session.order.round),
        cursor=config.steps,
        init_from=session.start.id,
    )
