"""What a launcher does: start a stage request somewhere, say how it ended, drain or cancel it.

The request and its files are the same everywhere; a launcher only decides where the processes live.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m4v.core.errors import ExitClass
from m4v.core.stage import Resources, StageRequest
from pipelines.environment import Target

REQUEST = "request.json"
DRAIN = "drain"
LOG = "stage.log"


@dataclass(frozen=True)
class Job:
    """A submitted request. `name` is deterministic (stage key and attempt), `reference` the launcher's own."""

    name: str
    work_dir: Path
    reference: str


@dataclass(frozen=True)
class Ending:
    """How a job ended; `crash` marks a native crash (SIGSEGV, SIGABRT), which is retried once only."""

    exit_class: ExitClass
    message: str = ""
    crash: bool = False


class Launcher(Protocol):
    """All calls may come from different threads, one thread a job."""

    name: str

    def target(self, resources: Resources) -> Target:
        """Where stages with these resources run; part of the key. Raises ConfigError when they cannot."""

    def submit(self, request: StageRequest) -> Job:
        """Start the job of `request` (its `request.json` is written), or attach to it when it is running."""

    def poll(self, job: Job, wait_s: float) -> Ending | None:
        """Wait up to `wait_s` seconds; None while the job runs."""

    def drain(self, job: Job) -> None:
        """Ask the stage to save its state and stop."""

    def cancel(self, job: Job) -> None:
        """Stop the job with everything it started; returns when it is gone."""
