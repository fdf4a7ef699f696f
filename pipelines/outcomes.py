"""What became of a node of a pipeline run, and the events a display is told on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from m4v.core.errors import ExitClass
from m4v.core.stage import Progress
from pipelines.lookup import Output


class NodeStatus(StrEnum):
    HIT = "hit"
    RAN = "ran"
    FAILED = "failed"
    BLOCKED = "blocked"  # an upstream node has no outputs
    DRAINED = "drained"

    @property
    def has_outputs(self) -> bool:
        return self in (NodeStatus.HIT, NodeStatus.RAN)


@dataclass(frozen=True)
class NodeOutcome:
    """What became of a node. `reason`: why it ran or was reused; `error`: why it has no outputs."""

    node_id: str
    status: NodeStatus
    reason: str
    seconds: float
    run_id: str | None = None
    stage_key: str | None = None
    attempt_id: str | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    error: str | None = None
    exit_class: ExitClass = ExitClass.OK
    log_path: str | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "node_id": self.node_id,
            "status": str(self.status),
            "reason": self.reason,
            "seconds": self.seconds,
            "run_id": self.run_id,
            "stage_key": self.stage_key,
            "attempt_id": self.attempt_id,
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
            "error": self.error,
            "exit_class": int(self.exit_class),
            "log_path": self.log_path,
        }


@dataclass(frozen=True)
class NodeEvent:
    """For a display. `kind`: started, note (waiting for a claim, a retry), progress, finished."""

    kind: str
    node_id: str
    text: str = ""
    progress: Progress | None = None
    outcome: NodeOutcome | None = None


class Courier(Protocol):
    """Carries the ledger's events to sinks meanwhile; never waits for one for long, and never fails."""

    def wake(self) -> None: ...

    def close(self) -> None: ...
