"""Ledger events as what an experiment tracker keeps of a run: parameters, metrics, tags and links to artifacts.

Trackers are mirrors: nothing is read back from them, and a mirror that was lost is made again under a new sink name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import M4VError
from pipelines.exports.reading import text_lines
from pipelines.ledger import EventRow, Ledger, PortRow, RunRow, Status

METRICS = "metrics.jsonl"
PREFIX = "m4v"
MAX_TEXT = 5000  # characters of a value; trackers take 5 to 6 thousand
_STEP = "step"


class Point(NamedTuple):
    """A measured value; `step` 0 for one that has no steps."""

    name: str
    value: float
    step: int


class Link(NamedTuple):
    """An artifact of a run; `role` is input or output, `port` its declared name."""

    role: str
    port: str
    kind: str
    artifact_id: str
    uri: str
    size_bytes: int


@dataclass(frozen=True)
class RunUpdate:
    """News of one run. `identity` is the ledger's id; `status` is set when it has ended. Values of a run that is
    told of again are the same."""

    identity: str
    parent: str | None
    name: str
    kind: str
    at: datetime
    status: Status | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    links: tuple[Link, ...] = ()


def updates(ledger: Ledger, event: EventRow) -> list[RunUpdate]:
    """What a tracker has to be told of an event; an empty list when nothing."""
    match event.kind:
        case "pipeline.begun" | "pipeline.finished":
            return [_pipeline_update(ledger, event)]
        case "attempt.begun" | "attempt.finished":
            return [_attempt_update(ledger, event)]
        case "pipeline.node" if "reuse" in event.payload:
            return [_reuse_update(ledger, event)]
        case "channel.moved":
            return list(_channel_updates(ledger, event))
        case "artifact.withdrawn":
            tag = {f"withdrawn.{event.payload['kind']}": event.payload["takedown_id"]}
            return list(_maker_update(ledger, event, event.subject, tag))
    return []


def _pipeline_update(ledger: Ledger, event: EventRow) -> RunUpdate:
    run = ledger.pipeline_run(event.subject)
    ended = event.kind == "pipeline.finished"
    tags = {"recipe_digest": run.recipe_digest, "trigger": run.trigger, "host": run.host}
    return RunUpdate(
        identity=run.pipeline_run_id,
        parent=None,
        name=f"{run.recipe} {run.pipeline_run_id}",
        kind="pipeline",
        at=event.at,
        status=Status(event.payload["status"]) if ended else None,
        params={} if ended else flat(run.resolved),
        tags=_tags(event.payload, tags),
    )


def _attempt_update(ledger: Ledger, event: EventRow) -> RunUpdate:
    attempt = ledger.attempt(event.subject)
    ended = event.kind == "attempt.finished"
    run_id = event.payload.get("run_id") if ended else None
    run = ledger.run(run_id) if run_id else None
    tags = {
        "stage": attempt.stage, "stage_key": attempt.stage_key, "attempt": str(attempt.number),
        "launcher": attempt.launcher, "host": attempt.host,
    }  # fmt: skip
    if run is not None:
        tags |= {"run_id": run.run_id, "exactness": str(run.exactness), "code_digest": run.code_digest}
    links = tuple(_links(ledger, run)) if run else ()
    tags |= {f"{link.role}.{link.port}": f"{link.kind}/{link.artifact_id}" for link in links}
    return RunUpdate(
        identity=attempt.attempt_id,
        parent=attempt.pipeline_run_id,
        name=attempt.node_id or attempt.stage,
        kind=attempt.stage,
        at=event.at,
        status=Status(event.payload["status"]) if ended else None,
        params=flat(run.config) | {"seed": str(run.seed)} if run else {},
        tags=_tags(event.payload, tags),
        points=tuple(_points(ledger, run)) if run else (),
        links=links,
    )


def _reuse_update(ledger: Ledger, event: EventRow) -> RunUpdate:
    """A cache hit is a note on the pipeline run: it is no execution."""
    run = ledger.pipeline_run(event.subject)
    payload = event.payload
    note = {f"hit.{payload['node_id']}": f"{payload['run_id']}: {payload['reason']}"}
    return RunUpdate(
        identity=run.pipeline_run_id, parent=None, name=f"{run.recipe} {run.pipeline_run_id}", kind="pipeline",
        at=event.at, tags=_tags({}, note),
    )  # fmt: skip


def _channel_updates(ledger: Ledger, event: EventRow) -> Iterator[RunUpdate]:
    """Tags on the runs that made what the channel names, and named before."""
    payload, channel = event.payload, event.subject
    for artifact_id, word in ((payload.get("from"), "left"), (payload["artifact_id"], "current")):
        if artifact_id is not None:
            yield from _maker_update(ledger, event, artifact_id, {f"channel.{channel}": word})


def _maker_update(ledger: Ledger, event: EventRow, artifact_id: str, tags: Mapping[str, str]) -> Iterator[RunUpdate]:
    """Tags on the first run that made an artifact; nothing for an imported one."""
    for maker in ledger.producers(artifact_id)[:1]:
        attempt = ledger.attempt(maker.attempt_id)
        yield RunUpdate(
            identity=attempt.attempt_id,
            parent=attempt.pipeline_run_id,
            name=attempt.node_id or attempt.stage,
            kind=attempt.stage,
            at=event.at,
            tags=_tags({}, tags),
        )


def _tags(payload: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, str]:
    message = {"message": payload["message"]} if payload.get("message") else {}
    return {f"{PREFIX}.{k}": str(v)[:MAX_TEXT] for k, v in {**tags, **message}.items()}


def _links(ledger: Ledger, run: RunRow) -> Iterator[Link]:
    for role, ports in (("input", run.inputs), ("output", run.outputs)):
        for port in ports:
            row = ledger.artifact(port.artifact_id, port.kind)
            yield Link(role, port.name, str(port.kind), port.artifact_id, row.uri, row.size_bytes)


def _points(ledger: Ledger, run: RunRow) -> Iterator[Point]:
    """The run's own metrics, then the curves of the checkpoints it made."""
    for name, value in sorted(run.metrics.items()):
        if (number := _number(value)) is not None:
            yield Point(name, number, 0)
    for port in run.outputs:
        if port.kind is ArtifactKind.CHECKPOINT:
            yield from _curves(ledger, port)


def _curves(ledger: Ledger, port: PortRow) -> Iterator[Point]:
    """Every number of every step; none when the bytes are gone: the ledger's events are delivered all the same."""
    try:
        rows = text_lines(ledger.artifact(port.artifact_id, port.kind), METRICS)
    except M4VError:
        return
    for row in rows:
        for name, value in sorted(row.items()):
            if name != _STEP and (number := _number(value)) is not None:
                yield Point(f"train/{name}", number, int(row[_STEP]))


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON as `a.b` -> text; lists stay JSON."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            found |= flat(inner, f"{name}.")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, sort_keys=True)
            found[name] = text[:MAX_TEXT]
    return found
