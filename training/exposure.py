"""Exposure: which samples a checkpoint's steps consumed, recomputed from a few stored values. Torch-free.

`training.json` of a checkpoint holds an `ExposureState`; with the index of its dataset version the whole line
of steps follows (DESIGN, Clip lineage). `M4V_EXPOSURE_LOG` names a directory for a debug log to compare with.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SerializerFunctionWrapHandler, model_serializer

from m4v.core.config import FrozenModel
from m4v.core.errors import InputError
from training.config import OrderConfig
from training.order import DataOrder
from training.samples import Samples
from training.split import held_out_samples
from training.timetable import Place

TRAINING_STATE = "training.json"
DEBUG_LOG = "M4V_EXPOSURE_LOG"


class ExposureState(FrozenModel):
    """`training.json`. `cursor` is the number of finished steps; `init_from` the checkpoint it started from.
    An untrained checkpoint has neither dataset nor order. Steps in `skipped` took no update, so that the checkpoint
    has not seen what they drew, nor has it seen clips that its order holds out."""

    schema_version: int = 1
    stage: str
    dataset_id: str | None
    order: OrderConfig | None
    seed: int
    global_batch: tuple[int, ...]  # samples of each step of the first image:video round
    cursor: int
    init_from: str | None
    skipped: tuple[int, ...] = ()

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        data: dict[str, object] = handler(self)
        if not self.skipped:
            del data["skipped"]
        return data


def rows_of(index: pa.Table) -> Samples:
    """The order's view of `index.parquet`."""
    return Samples.of_index(index)


def order_of(state: ExposureState, index: pa.Table) -> DataOrder:
    """The plan of the stage behind a checkpoint; raises InputError for an untrained one."""
    if state.order is None:
        raise InputError("checkpoint is untrained: it consumed nothing", value=state.stage)
    return DataOrder(rows_of(index), state.order, state.seed, state.stage)


def seen(state: ExposureState, index: pa.Table) -> Mapping[str, int]:
    """How often each sample was consumed by the checkpoint's own stage; unused samples are left out."""
    if state.order is None:
        return {}
    held_out = held_out_samples(index, state.order.held_out)
    return order_of(state, index).counts(state.cursor, state.skipped, held_out)


def steps_that_saw(state: ExposureState, index: pa.Table, sample_id: str) -> list[Place]:
    """Steps that consumed a sample, with pack and slot; empty when none did. Raises InputError for a sample
    that the dataset version does not hold."""
    if not pc.any(pc.equal(index["sample_id"], sample_id)).as_py():
        raise InputError("dataset version holds no such sample", value=sample_id, where=state.dataset_id)
    if state.order is None or sample_id in held_out_samples(index, state.order.held_out):
        return []
    skipped = set(state.skipped)
    places = order_of(state, index).places_of(sample_id, state.cursor)
    return [place for place in places if place.step not in skipped]


class DebugLog:
    """Appends what each step really consumed; every rank has a file. Lines survive kills, so a step that was
    lost and trained again stands twice: `surviving_line` keeps the last."""

    def __init__(self, directory: Path | None, stage: str, rank: int) -> None:
        self._path = None if directory is None else directory / f"{stage}.{rank}.jsonl"
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls, stage: str, rank: int) -> DebugLog:
        directory = os.environ.get(DEBUG_LOG)
        return cls(Path(directory) if directory else None, stage, rank)

    def write(
        self, step: int, world_size: int, draws: Iterable[tuple[int, str, int]], packs: Iterable[int] = ()
    ) -> None:
        """Record (pack, sample id, draw index) triples of a finished step that learned from them; `packs` are all
        that the rank had, those too that nothing was learned from."""
        if self._path is not None:
            line = json.dumps(
                {"step": step, "world_size": world_size, "at_ns": time.time_ns(), "packs": list(packs),
                 "draws": [list(draw) for draw in draws]}
            )  # fmt: skip
            with self._path.open("a") as stream:
                stream.write(line + "\n")


def surviving_line(directory: Path, stage: str, cursor: int) -> list[list[tuple[int, str, int]]]:
    """Draws of every step before `cursor` as sorted (pack, sample id, draw index), of the last time it ran.

    A line cut short by a kill belongs to a step that was not saved, so it is skipped.
    """
    last: dict[tuple[int, int], tuple[int, list[tuple[int, str, int]]]] = {}
    for path in directory.glob(f"{stage}.*.jsonl"):
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            packs: dict[int, list[tuple[int, str, int]]] = {pack: [] for pack in line.get("packs", ())}
            for pack, sample, draw in line["draws"]:
                packs.setdefault(pack, []).append((pack, sample, draw))
            for pack, rows in packs.items():
                key = (line["step"], pack)
                if key not in last or line["at_ns"] > last[key][0]:
                    last[key] = (line["at_ns"], rows)
    steps: list[list[tuple[int, str, int]]] = [[] for _ in range(cursor)]
    for (step, _), (_, rows) in last.items():
        if step < cursor:
            steps[step] += rows
    return [sorted(rows) for rows in steps]
