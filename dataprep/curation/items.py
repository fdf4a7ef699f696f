"""Measurements kept in an item store: a killed run goes on, and new thresholds recompute nothing.

An envelope holds a result or the reason of a failure that would come again; what depends on the machine and
the moment (a time-out, a dead worker) is never kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dataprep.curation.poison import PoisonList
from dataprep.engine import Engine
from dataprep.engines.limits import WorkLimits
from dataprep.quarantine import TRANSIENT_REASONS, ItemError, ItemFailure, Reason
from m4v.core.canonical import digest_bytes, digest_json
from m4v.core.items import ItemStore
from m4v.core.storage import Storage

_RESULT, _FAILURE = b"R", b"F"
_LIBRARIES = ("av", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch", "decord")
_CODE = ("media", "shots", "signals", "curation/measure.py")


@dataclass(frozen=True)
class Job:
    """One measurement: `task` for the function, the digest of its file, and where its result is kept.

    `video_s`: seconds of video in it; `verdict`: why it is not to be tried at all.
    """

    task: Any
    digest: str
    store_uri: str
    key: str
    video_s: float = 0.0
    verdict: ItemFailure | None = None


@dataclass(frozen=True)
class Remember:
    """Callable for an engine: measure, keep the envelope, return it."""

    function: Callable[[Any], bytes]

    def __call__(self, job: Job) -> bytes:
        if job.verdict is not None:
            raise ItemError(job.verdict.reason, job.verdict.detail)
        try:
            envelope = _RESULT + self.function(job.task)
        except ItemError as error:
            if error.reason in TRANSIENT_REASONS:
                raise
            envelope = _FAILURE + json.dumps([error.reason, error.detail]).encode()
        ItemStore(Storage(job.store_uri)).put(job.key, envelope)
        return envelope


def measure_all(
    engine: Engine, function: Callable[[Any], bytes], jobs: Sequence[Job], limits: WorkLimits, poison: PoisonList
) -> Iterator[bytes | ItemFailure]:
    """Payloads in the order of `jobs`; only those that no store holds go to the engine, and equal jobs (of two spans
    of one file) only once.

    A file whose work had to be killed in this call gets no other job of it started.
    """
    leaders: dict[tuple[str, str], Job] = {}
    repeats = []
    for job in jobs:
        leader = leaders.setdefault((job.store_uri, job.key), job)
        repeats.append(leader is not job and leader == job)
    distinct = [job for job, repeat in zip(jobs, repeats, strict=True) if not repeat]
    results = _measure_distinct(engine, function, distinct, limits, poison)
    failures: dict[tuple[str, str], ItemFailure] = {}
    for job, repeat in zip(jobs, repeats, strict=True):
        key = (job.store_uri, job.key)
        if not repeat:
            result = next(results)
            if isinstance(result, ItemFailure):
                failures[key] = result  # those that may pass are in no store
            yield result
        elif key in failures:
            yield failures[key]
        else:
            envelope = ItemStore(Storage(job.store_uri)).get(job.key)
            yield _open(envelope) if envelope is not None else ItemFailure(Reason.MISSING_FILE, "its result is gone")


def _measure_distinct(
    engine: Engine, function: Callable[[Any], bytes], jobs: Sequence[Job], limits: WorkLimits, poison: PoisonList
) -> Iterator[bytes | ItemFailure]:
    kept = [ItemStore(Storage(job.store_uri)).get(job.key) for job in jobs]
    missing = [job for job, envelope in zip(jobs, kept, strict=True) if envelope is None]
    killed: dict[str, ItemFailure] = {}

    def tried() -> Iterator[Job]:
        for job in missing:
            verdict = killed.get(job.digest) or poison.verdict(job.digest)
            yield job if verdict is None else replace(job, task=None, verdict=verdict)

    made = engine.map(
        Remember(function), tried() if missing else [],
        timeout_s=limits.wall_s, cpu_s=limits.cpu_s, memory_bytes=limits.memory_bytes, total=len(missing),
    )  # fmt: skip
    for job, envelope in zip(jobs, kept, strict=True):
        result = next(made) if envelope is None else envelope
        if envelope is None:
            engine.meter.video_s += job.video_s
        if isinstance(result, ItemFailure):
            if job.digest not in killed and poison.verdict(job.digest) is None and poison.add(job.digest, result):
                killed[job.digest] = result
            yield result
        else:
            yield _open(result)


def _open(envelope: bytes) -> bytes | ItemFailure:
    if envelope[:1] == _RESULT:
        return envelope[1:]
    reason, detail = json.loads(envelope[1:])
    return ItemFailure(reason, detail)


def pack(facts: dict[str, object], blob: bytes = b"") -> bytes:
    """JSON facts and a binary part."""
    head = json.dumps(facts, sort_keys=True).encode()
    return len(head).to_bytes(4, "big") + head + blob


def unpack(payload: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(payload[:4], "big")
    return json.loads(payload[4 : 4 + length]), payload[4 + length :]


def step_digest(identity: dict[str, object]) -> str:
    """Identity of a measuring step: its part of the config, the code that measures and the libraries under it."""
    return digest_json([identity, _code_digest(), {name: _version(name) for name in _LIBRARIES}])


def _version(name: str) -> str | None:
    """None of a decoder that is not installed, which who asks for it by name is told."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _code_digest() -> str:
    root = Path(__file__).parent.parent
    files = [
        p for name in _CODE for p in ([root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")))
    ]
    return digest_json([[p.relative_to(root).as_posix(), digest_bytes(p.read_bytes())] for p in files])
