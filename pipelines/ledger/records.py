"""What the ledger takes and gives: frozen values, never ORM objects. Times are aware UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ExitClass, InfrastructureError, InputError


class Status(StrEnum):
    """Of an attempt or a pipeline run."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DRAINED = "drained"
    LOST = "lost"  # its process ended without a word (attempts and pipeline runs found dead)
    REFUSED = "refused"  # a gate refused (pipeline runs)

    @classmethod
    def of_exit(cls, exit_class: int) -> Status:
        known = {ExitClass.OK: cls.SUCCEEDED, ExitClass.DRAINED: cls.DRAINED, ExitClass.GATE_REFUSED: cls.REFUSED}
        return known.get(exit_class, cls.FAILED)  # type: ignore[call-overload, no-any-return]


class NodeOutcome(StrEnum):
    """What became of a node of a pipeline run: `ran` and `hit` carry a run id."""

    RUNNING = "running"
    RAN = "ran"
    HIT = "hit"
    FAILED = "failed"
    DRAINED = "drained"
    SKIPPED = "skipped"


class Exactness(StrEnum):
    """What a resumed run may promise (DESIGN, Identity)."""

    BIT = "bit-exact"
    SAMPLE = "sample-exact"


class ClaimHeld(InfrastructureError):
    """Another live process is running this stage key: waiting helps."""

    def __init__(self, stage_key: str, owner: str, host: str, lease_until: datetime) -> None:
        self.owner, self.host, self.lease_until = owner, host, lease_until
        super().__init__(
            f"stage is being run by {owner} on {host}, lease until {lease_until:%Y-%m-%d %H:%M:%S} UTC",
            value=stage_key[:16],
            next_step="wait for it, or m4v runs cancel",
        )


class ClaimLost(InfrastructureError):
    """The lease went to somebody else; nothing of this attempt may be published."""

    def __init__(self, claim: Claim, holder: str) -> None:
        super().__init__(
            f"claim with fence {claim.fence} is no longer live: {holder}",
            value=claim.stage_key[:16],
            next_step="run again",
        )


class Withdrawn(InputError):
    """An artifact may not be used: a takedown withdrew it."""

    def __init__(self, artifact_id: str, kind: str, takedown_id: str, where: str | None = None) -> None:
        self.artifact_id, self.kind, self.takedown_id = artifact_id, kind, takedown_id
        super().__init__(
            f"{kind} was withdrawn by takedown {takedown_id}", value=artifact_id, where=where,
            next_step=f"m4v takedown show {takedown_id} names what stands in its place",
        )  # fmt: skip


class ChannelMoved(InputError):
    """Compare-and-swap failed: the channel names another artifact than expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    stage_key: str
    fence: int
    owner: str
    lease_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """Facts of a successful stage execution, as committed. `key_record` is what `stage_key` digests."""

    stage: str
    stage_version: int
    stage_key: str
    key_record: Mapping[str, Any]
    config: Mapping[str, Any]
    code_digest: str
    seed: int
    environment: Mapping[str, Any] = field(default_factory=dict)
    exactness: Exactness = Exactness.BIT


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRow:
    artifact_id: str
    kind: ArtifactKind
    uri: str
    size_bytes: int
    files: int
    summary: dict[str, Any]
    recorded_at: datetime
    deletion: str | None = None  # `marked`: its bytes are going, `done`: they are gone
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRow:
    """An input or output of a run: its declared name and the artifact there."""

    name: str
    artifact_id: str
    kind: ArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    run_id: str
    stage_key: str
    generation: int
    stage: str
    stage_version: int
    key_record: dict[str, Any]
    config: dict[str, Any]
    config_digest: str
    code_digest: str
    environment: dict[str, Any]
    seed: int
    exactness: Exactness
    metrics: dict[str, Any]
    attempt_id: str
    committed_at: datetime
    inputs: tuple[PortRow, ...]
    outputs: tuple[PortRow, ...]

    def output(self, name: str) -> PortRow:
        for port in self.outputs:
            if port.name == name:
                return port
        raise InputError("run has no such output", value=name, where=f"run {self.run_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    attempt_id: str
    stage_key: str
    stage: str
    number: int
    fence: int
    launcher: str
    host: str
    work_dir: str
    log_path: str
    pipeline_run_id: str | None
    node_id: str | None
    started_at: datetime
    pid: int | None
    job: str | None
    status: Status
    exit_class: int | None
    message: str
    metrics: dict[str, Any]
    finished_at: datetime | None
    run_id: str | None
    progress: dict[str, Any] | None
    heartbeat_at: datetime | None

    @property
    def duration_s(self) -> float | None:
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRunRow:
    pipeline_run_id: str
    recipe: str
    recipe_digest: str
    resolved: dict[str, Any]
    trigger: str
    host: str
    started_at: datetime
    status: Status
    exit_class: int | None
    message: str
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    pipeline_run_id: str
    node_id: str
    stage: str
    stage_key: str | None
    run_id: str | None
    attempt_id: str | None
    how: NodeOutcome
    reason: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    seq: int
    at: datetime
    kind: str
    subject: str
    payload: dict[str, Any]
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A sink's place in the events: everything up to `delivered_seq` has arrived, `waiting` events have not."""

    sink: str
    delivered_seq: int
    delivered_at: datetime | None
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRow:
    name: str
    seq: int
    artifact_id: str
    kind: ArtifactKind
    moved_by: str
    reason: str
    moved_at: datetime
    facts: dict[str, Any] = field(default_factory=dict)  # how: action, role, override, gate, request_id, …


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """Result of `verify_chain`: `problems` mean tampering or damage, `stale` projections can be rebuilt."""

    events: int
    head: str
    problems: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems
