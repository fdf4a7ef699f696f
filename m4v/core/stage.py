"""The contract between an orchestrator and a stage process: request, context, progress, result.

A stage function has the form `def run(context: StageContext) -> None`. It reads `context.inputs`, writes
files below `context.output(name)`, may keep resume state below `context.state`, and calls
`context.summary(...)` and `context.metrics(...)`. Every rank of a multi-rank stage runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from m4v.core.artifacts import Artifact, ArtifactKind
from m4v.core.canonical import plain_json
from m4v.core.config import FrozenModel, parse
from m4v.core.errors import ConfigError, Drained, ExitClass
from m4v.core.storage import Storage, write_atomic

REQUEST_SCHEMA = 1
WEIGHTS_INPUT = "weights"
RESULT = "result.json"  # in the work directory, written last
ModelT = TypeVar("ModelT", bound=FrozenModel)


class InputRef(FrozenModel):
    """One input artifact. Names are the declared input names; lists are numbered `name.0`, `name.1`, … and
    imported weights labelled `weights.NAME`."""

    name: str
    kind: ArtifactKind
    artifact_id: str
    uri: str


class OutputRef(FrozenModel):
    name: str
    kind: ArtifactKind


class Resources(FrozenModel):
    """How to run, never what: nothing here is in the stage key or may change a byte, except that `ranks`
    and `device` enter the numerics record of stages declared numeric."""

    ranks: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    workers: int = Field(1, ge=1)
    engine: str = "process"  # curation engine: process | ray
    ray_address: str | None = None
    gpus_per_worker: float = Field(1, gt=0, le=1)  # of a Ray worker whose work uses the device
    device: str = "cpu"


class StageRequest(FrozenModel):
    """`request.json`. `locations` says where mutable collections lie on this machine, `attachments` are
    files for the report; neither is in the stage key."""

    schema_version: int = REQUEST_SCHEMA
    stage: str
    stage_version: int
    function: str  # "package.module:function"
    config_model: str  # "package.config:Model"
    stage_key: str
    attempt_id: str
    config: dict[str, object]
    seed: int
    inputs: tuple[InputRef, ...]
    outputs: tuple[OutputRef, ...]
    store_uri: str
    work_dir: str  # local: staging, progress, logs, result.json, exit.json
    state_uri: str
    items_uri: str
    lock_file: str | None = None
    lock_digest: str | None = None
    numerics: dict[str, object] | None = None  # what the key promises of device, architecture, world size, …
    locations: dict[str, str] = {}
    attachments: dict[str, str] = {}
    resources: Resources = Resources(ranks=1, threads=1, workers=1)


class SharedFile(FrozenModel):
    """A file of an output that lies, byte for byte, in another artifact: `uri` is that artifact's, `source` its path
    there. It does not pass through staging; publishing links it, or has the server copy it."""

    path: str
    uri: str
    source: str
    size_bytes: int
    sha256: str


class OutputResult(FrozenModel):
    """`staging` holds every file of the artifact but the `shared` ones."""

    name: str
    kind: ArtifactKind
    artifact_id: str
    staging: str  # local directory with its manifest, or a store URI
    size_bytes: int
    files: int
    shared: tuple[SharedFile, ...] = ()


class StageResult(FrozenModel):
    """`result.json`, written last by rank 0."""

    schema_version: int = REQUEST_SCHEMA
    stage: str
    stage_key: str
    attempt_id: str
    outputs: tuple[OutputResult, ...]
    metrics: dict[str, object] = {}
    environment: dict[str, object] = {}


class ExitRecord(FrozenModel):
    """`exit.<rank>.json`: why a rank ended."""

    rank: int
    exit_class: int
    message: str = ""
    traceback: str = ""


class Progress(FrozenModel):
    """`progress.json`; `rate` in units per second, times in Unix seconds. `figures`: what else a stage counts, by
    name: its queue, its workers, video-hours."""

    done: float = 0
    total: float | None = None
    unit: str = "items"
    note: str = ""
    figures: dict[str, float] = {}
    rate: float | None = None
    eta_s: float | None = None
    started_at: float = 0
    updated_at: float = 0
    heartbeat_at: float = 0


class ProgressReporter:
    """Writes `progress.json` at most every half second, and a heartbeat from a thread every two."""

    INTERVAL_S, HEARTBEAT_S = 0.5, 2.0
    SETTLED_S = 1.0  # of work, before a rate means anything

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        now = time.time()
        self._state = Progress(started_at=now, updated_at=now, heartbeat_at=now)
        self._written = 0.0
        self._from: tuple[float, float, str] | None = None  # time, done, unit: where the rate counts from
        self._stop = threading.Event()
        if path is not None:
            self._write()
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def update(
        self,
        done: float,
        total: float | None = None,
        unit: str = "items",
        note: str = "",
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Say how far the stage is. What was done before the first word (a resumed stage, a new phase)
        does not count as speed, and nothing is said of it in the first second."""
        now = time.time()
        with self._lock:
            if self._from is None or self._from[2] != unit or done < self._state.done:
                self._from = (now, done, unit)
            elapsed, worked = now - self._from[0], done - self._from[1]
            rate = worked / elapsed if elapsed >= self.SETTLED_S and worked > 0 else None
            eta = max(total - done, 0.0) / rate if rate and total is not None else None
            self._state = self._state.model_copy(
                update={
                    "done": done, "total": total, "unit": unit, "note": note, "figures": dict(figures or {}),
                    "rate": rate, "eta_s": eta, "updated_at": now, "heartbeat_at": now,
                }
            )  # fmt: skip
            if now - self._written >= self.INTERVAL_S or (total is not None and done >= total):
                self._write()

    def close(self) -> None:
        self._stop.set()

    def _beat(self) -> None:
        while not self._stop.wait(self.HEARTBEAT_S):
            with self._lock, contextlib.suppress(OSError):  # a missed beat shows by itself; the next may work
                self._state = self._state.model_copy(update={"heartbeat_at": time.time()})
                self._write()

    def _write(self) -> None:
        if self._path is not None:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(self._state.model_dump_json())
            temporary.replace(self._path)
            self._written = time.time()


class StageContext:
    """What a stage function may touch."""

    def __init__(self, request: StageRequest, rank: int = 0, world_size: int = 1) -> None:
        self.request, self.rank, self.world_size = request, rank, world_size
        self.work_dir = Path(request.work_dir)
        self.scratch = self.work_dir / "scratch"
        self.scratch.mkdir(parents=True, exist_ok=True)
        cache = Path(os.environ.get("M4V_CACHE", self.work_dir / "cache"))
        self.inputs = {i.name: Artifact(i.uri, i.artifact_id, i.kind, cache) for i in request.inputs}
        self.state = Storage(request.state_uri)
        self.seed, self.resources = request.seed, request.resources
        self.progress = ProgressReporter(self.work_dir / "progress.json" if rank == 0 else None)
        self._summaries: dict[str, dict[str, object]] = {}
        self._shared: dict[str, dict[str, SharedFile]] = {}
        self._metrics: dict[str, object] = {}
        self._drain = threading.Event()

    def config(self, model: type[ModelT]) -> ModelT:
        return parse(model, self.request.config, f"request of {self.request.stage}")

    def input(self, name: str) -> Artifact:
        if name not in self.inputs:
            raise ConfigError("stage has no such input", value=name, where=self.request.stage)
        return self.inputs[name]

    def input_list(self, name: str) -> list[Artifact]:
        """Inputs `name.0`, `name.1`, … in order."""
        numbered = [(int(k.rsplit(".", 1)[1]), v) for k, v in self.inputs.items() if k.startswith(f"{name}.")]
        return [artifact for _, artifact in sorted(numbered, key=lambda pair: pair[0])]

    def weights(self) -> dict[str, Artifact]:
        """Imported third-party weights (inputs `weights.NAME`) by the name that the recipe gives them."""
        prefix = f"{WEIGHTS_INPUT}."
        return {name.removeprefix(prefix): a for name, a in self.inputs.items() if name.startswith(prefix)}

    def weights_folders(self) -> dict[str, Path]:
        """Local folders of `weights()`, as `open_codec` and `open_text_encoder` take them; from a remote store
        every file is fetched and its digest checked."""
        return {name: artifact.folder() for name, artifact in self.weights().items()}

    def location(self, name: str) -> Storage:
        if name not in self.request.locations:
            raise ConfigError("no location given for this collection", value=name, where=self.request.stage)
        return Storage(self.request.locations[name])

    def output(self, name: str) -> Path:
        """Local staging directory of a declared output; its files become the artifact."""
        if name not in {o.name for o in self.request.outputs}:
            raise ConfigError("stage declares no such output", value=name, where=self.request.stage)
        directory = self.work_dir / "staging" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def share(self, output: str, path: str, artifact: Artifact, source: str) -> None:
        """Make `path` of an output the file `source` of an input, without touching its bytes.

        Raises DataIntegrityError when the artifact has no such file.
        """
        entry = artifact.manifest.entry(source)
        self._shared.setdefault(output, {})[path] = SharedFile(
            path=path, uri=artifact.storage.uri, source=source, size_bytes=entry.size_bytes, sha256=entry.sha256
        )

    def shared(self, output: str) -> tuple[SharedFile, ...]:
        """Files of an output that `share` named, by path."""
        return tuple(file for _, file in sorted(self._shared.get(output, {}).items()))

    def items(self, step: str, config_digest: str) -> Storage:
        """Item store of one step: results keyed by the caller with the source digest."""
        return Storage(self.request.items_uri).child(f"{step}/{config_digest[:32]}")

    def summary(self, output: str, facts: Mapping[str, object]) -> None:
        """Facts for the manifest of an output (rank 0 counts)."""
        self._summaries.setdefault(output, {}).update(facts)

    def metrics(self, values: Mapping[str, object]) -> None:
        """Numbers for the run's ledger row (not part of any artifact)."""
        self._metrics.update((k, plain_json(v)) for k, v in values.items())

    def summaries(self) -> dict[str, dict[str, object]]:
        return self._summaries

    def collected_metrics(self) -> dict[str, object]:
        return self._metrics

    def request_drain(self) -> None:
        self._drain.set()

    @property
    def drain_requested(self) -> bool:
        """True once the supervisor asked for an orderly stop: by SIGTERM or by the file `drain`."""
        return self._drain.is_set() or (self.work_dir / "drain").exists()

    def check_drain(self) -> None:
        """Raise Drained at a point where all state is saved."""
        if self.drain_requested:
            raise Drained("stage was drained", value=self.request.stage, next_step="m4v run RECIPE resumes it")


def install_drain_handler(context: StageContext) -> None:
    signal.signal(signal.SIGTERM, lambda *_: context.request_drain())


def write_json(path: Path, model: FrozenModel) -> None:
    write_atomic(path, json.dumps(model.canonical(), indent=1, sort_keys=True).encode())


def write_exit(context_dir: Path, record: ExitRecord) -> None:
    write_json(context_dir / f"exit.{record.rank}.json", record)


def read_exits(context_dir: Path) -> list[ExitRecord]:
    return [ExitRecord.model_validate_json(p.read_bytes()) for p in sorted(context_dir.glob("exit.*.json"))]


__all__ = [
    "ExitClass", "ExitRecord", "InputRef", "OutputRef", "OutputResult", "Progress", "ProgressReporter",
    "Resources", "SharedFile", "StageContext", "StageRequest", "StageResult", "install_drain_handler", "read_exits",
    "write_exit", "write_json",
]  # fmt: skip
