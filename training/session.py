"""A training stage from its inputs to its checkpoint artifact: plan, resume, train, export.

Shared by `train` and `reward`, which differ in their objective only.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from torch import distributed

from m4v.codec import open_codec
from m4v.codec.config import CodecConfig
from m4v.codec.interface import LatentCodec
from m4v.core.artifacts import Artifact
from m4v.core.errors import ConfigError, NeedsHuman
from m4v.core.shard_index import INDEX, read_index
from m4v.core.stage import StageContext
from m4v.family import AnyCheckpoint, read_checkpoint_config
from training.clock import time_collectives
from training.config import RewardConfig, TrainConfig
from training.ema import Ema
from training.encoders import check_samples, codec_constants
from training.engine import Engine, device_of_rank, init_process_group, open_engine
from training.export import export_checkpoint, parse_rows
from training.exposure import rows_of
from training.families import Family, family_of
from training.guard import Guard, RollBack, RollBacks, RolledBack
from training.hardware import StepCosts, device_peak
from training.heartbeat import Pulse
from training.loader import INDEX_COLUMNS, Collator, SampleStore, Text
from training.monitor import Monitor
from training.objective import Objective
from training.order import DataOrder
from training.ranks import check_ranks, pack_rank
from training.reward.probe import open_probe
from training.reward.watch import Alarm, Watch, WatchFinished
from training.samples import COLUMNS
from training.saved import Row, SaveManifest
from training.saving import SaveFacts, Saver, record_save
from training.shard_source import member_reader
from training.split import CLIP, held_out_samples
from training.state import Candidate, StateStore
from training.stepping import Stepper
from training.trainer import Trainer, shards_of
from training.validation import Validator

DATASET, NULL_TEXT = "dataset.json", "null_text.safetensors"  # beside the index of a dataset version
_log = logging.getLogger(__name__)
ObjectiveMaker = Callable[[Family], Objective]


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
    time_collectives()
    try:
        manifest = _agree_on_save(session)
        while manifest is None or manifest.step < config.steps:
            try:
                manifest = _train(session, manifest, objective, device, began)
                break
            except RolledBack as news:
                _record_roll_back(session, news)
            except WatchFinished as news:
                manifest = _good_save(session, news.alarm)
                break
            gc.collect()  # the engine left behind, before another takes its room
            began, manifest = time.perf_counter(), _agree_on_save(session)
        if context.rank == 0 and manifest is not None:
            export_checkpoint(context, config, session.start, session.dataset, session.order, session.states, manifest)
    finally:
        distributed.destroy_process_group()


def _train(
    session: Session, manifest: SaveManifest | None, objective: ObjectiveMaker, device: torch.device, began: float
) -> SaveManifest | None:
    """Train from a save to the last step; raises RolledBack when the stage shall go on from an earlier save."""
    context = session.context
    pulse = Pulse(context.work_dir, context.rank, 0 if manifest is None else manifest.step)
    monitor: Monitor | None = None
    try:
        rows = [] if manifest is None else parse_rows(session.states.metric_rows(manifest))
        if context.rank == 0:
            monitor = Monitor(context.work_dir, session.config.name, rows)
        trainer = _start(session, manifest, objective, device, rows, pulse)
        trainer.monitor = monitor
        context.metrics({"start_seconds": time.perf_counter() - began})
        try:
            finished = trainer.run()
        except RolledBack:
            trainer.engine.close()
            raise
        context.metrics(trainer.speed.summary())
        return finished
    finally:
        pulse.close()
        if monitor is not None:
            monitor.close()


def _good_save(session: Session, alarm: Alarm) -> SaveManifest:
    """The save that a hacked reward stage ends with."""
    session.context.metrics({"watch_alarm": dataclasses.asdict(alarm)})
    saves = (candidate.manifest for candidate in session.states.candidates())
    for manifest in saves:
        if manifest is not None and manifest.step == alarm.good and not session.states.faults(manifest):
            return manifest
    raise NeedsHuman(
        f"the last good save of stage {session.config.name!r} is not there any more", value=alarm.good, where="watch",
        next_step="raise keep_saves, or keep_every, and train again",
    )  # fmt: skip


def _record_roll_back(session: Session, news: RolledBack) -> None:
    """Keep the decision, so that it holds from now on. An emergency save may be of a step that is left out: such saves
    go first, or a kill in between would have the stage go on from one."""
    context, states = session.context, session.states
    _log.warning("%s; steps %s are left out", news.what, list(news.left_out))
    if context.rank != 0:
        return
    for candidate in states.candidates():
        if candidate.manifest is None or candidate.manifest.step > news.left_out[0]:
            states.drop(candidate.folder)
    attempt = context.request.attempt_id
    RollBacks(context.state).record(
        RollBack(step=news.step, left_out=news.left_out, reason=news.reason, attempt_id=attempt)
    )


def open_session(context: StageContext, config: TrainConfig) -> Session:
    """Read the index and plan the data order; raises ConfigError when dataset, ranks and config disagree."""
    check_ranks(config, context.world_size)
    dataset, start = context.input("dataset"), context.input("checkpoint")
    index = read_index(dataset.path(INDEX), dict.fromkeys((*COLUMNS, CLIP, *INDEX_COLUMNS)))
    order = DataOrder(rows_of(index), config.order, context.seed, config.name)
    # The good save of an alarm is the one before the last two; a drain's emergency save must not push it out.
    keep = config.keep_saves + 2 * isinstance(config, RewardConfig)
    states = StateStore(context.state, keep, context.request.attempt_id)
    return Session(context, config, dataset, start, index, order, states)


def _agree_on_save(session: Session) -> SaveManifest | None:
    """The newest verified save, the same for all ranks, which share the reading of its files. What was passed over
    is said, recorded and deleted: it would count among the saves that retention keeps."""
    context, states = session.context, session.states
    listed: list[list[Candidate]] = [[]]
    if context.rank == 0:
        states.drop_unfinished()
        listed = [states.candidates()]
    distributed.broadcast_object_list(listed)

    def faults_of(manifest: SaveManifest) -> list[str]:
        found: list[list[str]] = [[]] * context.world_size
        distributed.all_gather_object(found, states.faults(manifest, context.rank, context.world_size))
        return [fault for faults in found for fault in faults]

    chosen = states.newest_verified(listed[0], faults_of)
    if chosen is not None:
        states.trust(chosen)
    for folder, reason in states.passed_over if context.rank == 0 else ():
        _log.warning("save %s is damaged and was passed over: %s", folder, reason)
        record_save(context, {"event": "passed_over", "folder": folder, "reason": reason})
        states.drop(folder)
    return chosen


def _start(
    session: Session,
    manifest: SaveManifest | None,
    objective: ObjectiveMaker,
    device: torch.device,
    rows: Sequence[Row],
    pulse: Pulse,
) -> Trainer:
    """The trainer of this rank at a save whose steps' metric rows are `rows`."""
    context, config = session.context, session.config
    checkpoint = read_checkpoint_config(session.start.path("config.json"))
    family = family_of(checkpoint)
    family.check_order(config.order.columns, f"stage {config.name!r}")
    model = family.load(session.start.path, ema=config.start_from == "ema")
    check_encoders(session.dataset, checkpoint)
    check_samples(session.dataset, session.config.order)
    made = objective(family)
    if manifest is not None:
        model.load_state_dict(session.states.whole(manifest, "master"), assign=True)
    packs = config.order.packs // pack_rank(config.engine, context.rank, context.world_size)[1]
    engine = open_engine(model, config.optimizer, config.engine, packs, device)
    ema = Ema(engine.fragments(), config.ema_decay) if config.ema_decay > 0 else None
    step = 0 if manifest is None else manifest.step
    here = ((step, context.world_size),)
    before = () if manifest is None else tuple(e for e in manifest.lineage if e[0] < step)
    saver = _saver(session, manifest, SaveFacts(engine.shapes, ema is not None, before + here))
    guard, left_out = Guard(config.guard, rows), RollBacks(context.state).left_out()
    collate = _collator(session, family, made)
    peak = device_peak(device, config.engine.dtype) if context.rank == 0 else None
    if manifest is not None:
        session.states.load_into(manifest, shards_of(engine, ema))
        engine.set_adam_step(step - guard.skipped)
    return Trainer(
        context=context,
        config=config,
        order=session.order,
        collate=collate,
        stepper=Stepper(config, session.order, made, engine, ema, guard, left_out, saver.before_update),
        engine=engine,
        ema=ema,
        saver=saver,
        pulse=pulse,
        step=step,
        validator=_validator(session, family, collate, engine) if config.validation.every else None,
        costs=None if peak is None else StepCosts(checkpoint.model, session.order),
        peak=peak,
        watch=Watch(config.watch, config.save_every, rows) if isinstance(config, RewardConfig) else None,
        probe=open_probe(config, session.index, collate, engine, family, made, context.state, step),
    )


def _validator(session: Session, family: Family, collate: Collator, engine: Engine) -> Validator:
    context = session.context

    @functools.cache
    def codec() -> LatentCodec:
        config: CodecConfig = TypeAdapter(CodecConfig).validate_python(family.config.codec)
        return open_codec(config, context.weights_folders(), context.resources.device)

    return Validator.of(session.config, session.index, collate, engine, family, context.state, codec)


def _saver(session: Session, manifest: SaveManifest | None, facts: SaveFacts) -> Saver:
    context = session.context
    return Saver(
        session.states,
        context.rank,
        context.world_size,
        facts,
        metric_files=() if manifest is None else manifest.metrics,
        committed=None if manifest is None else manifest.step,
        timeout_s=session.config.save_timeout_s,
        record=lambda row: record_save(context, row),
    )


def _collator(session: Session, family: Family, objective: Objective) -> Collator:
    with safe_open(session.dataset.path(NULL_TEXT), framework="pt") as null:
        null_text = Text(*(null.get_tensor(key)[0] for key in Text._fields))
    return Collator(
        store=SampleStore(session.dataset.path, session.index, member_reader(session.dataset)),
        packing=family,
        null_text=null_text,
        seed=session.context.seed,
        stage=session.config.name,
        text_drop=session.config.text_drop,
        high_window=objective.high_window,
        with_captions=objective.needs_captions,
        constants=codec_constants(session.dataset),
        held_out=held_out_samples(session.index, session.config.order.held_out),
    )


def check_encoders(dataset: Artifact, checkpoint: AnyCheckpoint) -> None:
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
