"""Saves beside the training loop: a snapshot at the step's end, written, verified and committed by a thread.

A thread, not a process: the work is copies, digests, writes and syncs of large pieces, which hold no interpreter
lock, and only a thread reads the pinned buffers without sharing them first, dies with its rank at once, and needs
neither a fork beside CUDA nor a second start of torch. Ranks meet through the storage, not through collectives: a
slow disk can then never trip a collective's timeout, nor a save's collectives mix with the training's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from m4v.core.errors import InfrastructureError
from m4v.core.stage import StageContext
from training.config import TrainConfig
from training.saved import Kind, Row, SaveManifest, Shard, StateFile
from training.snapshot import Snapshot
from training.state import StateStore

FoundT = TypeVar("FoundT")
SAVES_LOG = "saves.jsonl"
_FIRST_LOOK_S, _LAST_LOOK_S = 0.01, 1.0  # between looks for the other ranks' files


@dataclass(frozen=True)
class SaveFacts:
    """What every manifest of a run says alike."""

    shapes: dict[str, tuple[int, ...]]
    has_ema: bool
    lineage: tuple[tuple[int, int], ...]


@dataclass
class SaveJob:
    """One save of one rank, on its way. `seconds` by part: `wait` for the save before and `start` held the training
    loop up; `copy`, `write` (with the read-back) and `commit` (the wait for all ranks included) ran beside it."""

    step: int
    kind: Kind
    synchronous: bool
    seconds: dict[str, float] = field(default_factory=dict)
    manifest: SaveManifest | None = None
    error: BaseException | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def timed(self, part: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[part] = round(now - since, 6)
        return now


class Saver:
    """Saves of one rank, at most one on its way. Every rank makes the same calls in the same order.

    `committed` is the step of the last save that is known to exist; `record` takes a row about each finished save.
    """

    def __init__(
        self,
        states: StateStore,
        rank: int,
        world_size: int,
        facts: SaveFacts,
        metric_files: Sequence[StateFile] = (),
        committed: int | None = None,
        timeout_s: float = 1800,
        record: Callable[[Row], None] = lambda row: None,
    ) -> None:
        self._states, self._rank, self._world_size, self._facts = states, rank, world_size, facts
        self._metric_files, self._timeout_s, self._record = tuple(metric_files), timeout_s, record
        self.committed = committed
        self._snapshot = Snapshot()
        self._job: SaveJob | None = None

    @property
    def begun(self) -> int | None:
        """Step of the newest save that was begun, finished or not."""
        return self.committed if self._job is None else self._job.step

    def prepare(self, shards: Sequence[Shard]) -> None:
        """Get ready for saves beside the training of a state like `shards`: pin the host memory of their copies."""
        mine = [shard for shard in shards if shard.primary]
        if any(shard.master.device.type == "cuda" for shard in mine):
            self._snapshot.prepare(mine)

    def close(self) -> None:
        """Stop getting ready; saves are made as before."""
        self._snapshot.close()

    def begin(
        self, step: int, shards: Sequence[Shard], rows: Sequence[Row], kind: Kind = "ephemeral", *,
        synchronous: bool = False, deadline: float | None = None,
    ) -> bool:  # fmt: skip
        """Start the save of the state after `step` steps, with the metric rows since the last one; the save before
        must finish first, by `deadline` (of `time.monotonic`) if there is one: else False, and nothing was begun.

        A `synchronous` one is followed by `finish`, and no step before that. Raises what the save before raised.
        """
        began = time.perf_counter()
        if self._job is not None and self.finish(deadline) is None:
            return False
        job = self._job = SaveJob(step, kind, synchronous)
        since = job.timed("wait", began)
        mine = [shard for shard in shards if shard.primary]
        in_place = synchronous and self._settled_where_it_lies(mine)
        if not in_place:
            self._snapshot.begin(mine)
        job.thread = threading.Thread(
            target=self._run, args=(job, mine, in_place, tuple(rows)), name=f"save-{step}", daemon=True
        )
        job.thread.start()
        job.timed("start", since)
        return True

    def _settled_where_it_lies(self, shards: Sequence[Shard]) -> bool:
        """Whether a synchronous save writes the state itself, which nothing changes meanwhile. From a GPU too, unless
        there are host buffers already: pinning as much memory takes longer than the write."""
        gpus = {shard.master.device for shard in shards} - {torch.device("cpu")}
        if gpus and self._snapshot.has_buffers:
            return False
        for device in gpus:
            torch.cuda.current_stream(device).synchronize()  # the write reads on another thread
        return True

    def before_update(self) -> None:
        """Wait until the snapshot of the last save is taken; call it before weights or moments change."""
        self._snapshot.settle()

    def check(self) -> None:
        """Raise what the save on its way has failed with, if it has."""
        if self._job is not None and self._job.error is not None:
            raise self._job.error

    def finish(self, deadline: float | None = None) -> SaveManifest | None:
        """Wait for the save on its way; its manifest. None when the deadline came first: that save is abandoned,
        and `committed` says which one stands. Raises what it failed with."""
        job = self._job
        if job is None or job.thread is None:
            return None
        job.thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if job.thread.is_alive():
            job.abandoned.set()
            return None
        self.check()
        self._job = None
        assert job.manifest is not None
        self.committed = job.step
        return job.manifest

    def _run(self, job: SaveJob, live: list[Shard], in_place: bool, rows: tuple[Row, ...]) -> None:
        try:
            since = time.perf_counter()
            shards = live if in_place else self._snapshot.copy(live)
            since = job.timed("copy", since)
            files = self._states.write_shards(job.step, self._rank, shards)
            self._states.report(job.step, self._rank, files)
            since = job.timed("write", since)
            manifest = self._commit(job, rows) if self._rank == 0 else self._wait_for_commit(job, files)
            job.timed("commit", since)
            self._record(
                {"event": "save", "step": job.step, "kind": job.kind, "synchronous": job.synchronous,
                 "bytes": sum(file.size_bytes for file in files), "seconds": job.seconds}
            )  # fmt: skip
            job.manifest = manifest
        except BaseException as error:  # raised again in the training loop, whatever it is
            job.error = error

    def _commit(self, job: SaveJob, rows: tuple[Row, ...]) -> SaveManifest:
        if rows:
            self._metric_files = (*self._metric_files, self._states.write_metrics(rows))
        files = self._await(job, lambda: self._states.reports(job.step, self._world_size))
        manifest = SaveManifest(
            step=job.step, kind=job.kind, shapes=self._facts.shapes, has_ema=self._facts.has_ema, files=files,
            metrics=self._metric_files, lineage=self._facts.lineage,
        )  # fmt: skip
        self._states.commit(manifest)
        return manifest

    def _wait_for_commit(self, job: SaveJob, own: tuple[StateFile, ...]) -> SaveManifest:
        """Rank 0 commits; what the others return holds no more than they know."""
        self._await(job, lambda: True if self._states.committed(job.step) else None)
        return SaveManifest(
            step=job.step, kind=job.kind, shapes=self._facts.shapes, has_ema=self._facts.has_ema, files=own,
            metrics=(), lineage=self._facts.lineage,
        )  # fmt: skip

    def _await(self, job: SaveJob, look: Callable[[], FoundT | None]) -> FoundT:
        until, pause = time.monotonic() + self._timeout_s, _FIRST_LOOK_S
        while (found := look()) is None:
            if job.abandoned.wait(pause) or time.monotonic() > until:
                raise InfrastructureError(
                    "a save was not finished by all ranks", value=f"step {job.step}", where=self._states.storage.uri,
                    next_step="look at the other ranks' logs; the last committed save stands",
                )  # fmt: skip
            pause = min(_LAST_LOOK_S, 2 * pause)
        return found


def is_permanent(step: int, config: TrainConfig) -> bool:
    """Is the save after `step` steps one that retention never deletes?"""
    return config.keep_every > 0 and step % config.keep_every == 0


def is_due(step: int, config: TrainConfig) -> bool:
    """Is the state saved after `step` steps?"""
    return step % config.save_every == 0 or is_permanent(step, config)


def record_save(context: StageContext, row: Row) -> None:
    """Add a row to `saves.jsonl` of the attempt, rank 0's; nothing of it enters an artifact."""
    if context.rank == 0:
        with Path(context.work_dir, SAVES_LOG).open("a") as stream:
            stream.write(json.dumps({"at": round(time.time(), 3), **row}) + "\n")


class DrainClock:
    """When a stop was first asked for, seen by a thread: a step may be long, and the deadline runs meanwhile."""

    _LOOK_S = 0.25

    def __init__(self, asked: Callable[[], bool], deadline_s: float) -> None:
        self._asked, self._deadline_s = asked, deadline_s
        self._at: float | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="drain-clock", daemon=True).start()

    @property
    def deadline(self) -> float:
        """Time (of `time.monotonic`) by which this rank must have left; from now on if nobody has asked it."""
        return (time.monotonic() if self._at is None else self._at) + self._deadline_s

    def close(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            if self._asked():
                self._at = time.monotonic()
                return
            self._stop.wait(self._LOOK_S)
