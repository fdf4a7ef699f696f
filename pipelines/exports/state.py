"""What went wrong with a sink last, for people: `sinks/NAME.json` in the home. Its place in the outbox is the
ledger's to know, and nothing depends on this file."""

from __future__ import annotations

from datetime import datetime
from typing import Self

from pydantic import ValidationError

from m4v.core.config import FrozenModel
from m4v.core.storage import write_atomic
from pipelines.exports.delivery import Delivered
from pipelines.ledger.types import utc_now
from pipelines.workspace import Workspace

FOLDER = "sinks"


class SinkState(FrozenModel):
    """`failures` in a row; 0 when the last delivery went well. `event` is the one it stopped at."""

    failures: int = 0
    error: str | None = None
    event: int | None = None
    failed_at: datetime | None = None

    @classmethod
    def failed(cls, failures: int, done: Delivered) -> Self:
        error = done.error.message if done.error else None
        return cls(failures=failures, error=error, event=done.stopped_at, failed_at=utc_now())


def read_state(workspace: Workspace, name: str) -> SinkState:
    """The sink's last state; a file that is missing or does not parse says nothing."""
    try:
        return SinkState.model_validate_json((workspace.home / FOLDER / f"{name}.json").read_bytes())
    except (OSError, ValidationError):
        return SinkState()


def write_state(workspace: Workspace, name: str, state: SinkState) -> None:
    """Raises InfrastructureError when the home cannot be written."""
    path = workspace.home / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, state.model_dump_json(indent=1).encode())
