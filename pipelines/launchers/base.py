"""What a launcher does: start a stage request somewhere or attach to it, say how it stands, drain or cancel it.

The request and its files are the same everywhere; a launcher only decides where the processes live.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from m4v.core.errors import ExitClass
from m4v.core.local_files import write_atomic
from m4v.core.stage import Resources, StageRequest
from pipelines.environment import Target
from training.heartbeat import HangLimits

REQUEST = "request.json"
DRAIN = "drain"
DRAIN_ASKED = "drain.asked"  # somebody asked for it; a drain file alone may be a machine's, taken away or out of time
_JOB_NAME = re.compile(r"m4v-[0-9a-f]{12}-(\w+)")
STACKS = "stacks"  # asks every rank for its stacks; they go to `stacks.<rank>.txt`
LOG = "stage.log"


@dataclass(frozen=True)
class Job:
    """A submitted request. `name` is deterministic (stage key and attempt), `reference` the launcher's own id.
    What its processes print is in `work_dir / LOG`."""

    name: str
    work_dir: Path
    reference: str


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    - crash: a native crash (SIGSEGV, SIGABRT), which is retried once only.
    - nodes: those that are to blame, as far as that can be told.
    - preempted: its place was taken away; a new start does not count as a retry.
    """

    exit_class: ExitClass
    message: str = ""
    crash: bool = False
    nodes: tuple[str, ...] = ()
    preempted: bool = False


class NodePolicy(NamedTuple):
    """A node that failed `failures` times within `days` gets no more jobs."""

    failures: int
    days: float


def job_name(stage_key: str, attempt_id: str) -> str:
    """The name of an attempt's job, known before there is one."""
    return f"m4v-{stage_key[:12]}-{attempt_id}"


def attempt_of_job(name: str) -> str | None:
    """The attempt in a name that `job_name` made; None for any other."""
    found = _JOB_NAME.fullmatch(name)
    return found.group(1) if found else None


def ask_to_drain(work_dir: Path) -> None:
    """Stages poll for the file; the other one says that a person wants it, not a machine that is taken away."""
    write_atomic(work_dir / DRAIN_ASKED, b"")
    write_atomic(work_dir / DRAIN, b"")


class Launcher(Protocol):
    """All calls may come from different threads, one thread a job.

    - outlives: a job goes on when the process that submitted it dies, and is attached to later.
    - nodes: when to leave out nodes that fail; None where there is nothing to choose from.
    - hang: how long ranks may be silent.
    """

    name: str
    outlives: bool
    nodes: NodePolicy | None
    hang: HangLimits

    def target(self, resources: Resources) -> Target:
        """Where stages with these resources run; part of the key. Raises ConfigError when they cannot."""

    def submit(self, request: StageRequest, exclude: Sequence[str] = ()) -> Job:
        """Start the job of `request` (its `request.json` is written), or attach to it when it is there already; not on
        the nodes in `exclude`."""

    def attach(self, name: str, work_dir: Path) -> Job | None:
        """The live job of this name that an earlier process submitted; None when there is none."""

    def poll(self, job: Job, wait_s: float) -> Ending | None:
        """Wait up to `wait_s` seconds; None while the job waits for its place or runs."""

    def starts(self, job: Job) -> list[dict[str, object]]:
        """What is known of each time that the job was started: number, nodes, how it ended."""

    def is_running(self, job: Job) -> bool:
        """Whether its ranks are at work now, as far as is known: a job in a queue cannot hang."""

    def drain(self, job: Job) -> None:
        """Ask the stage to save its state and stop."""

    def dump_stacks(self, job: Job) -> None:
        """Have every rank write where each of its threads stands to `stacks.<rank>.txt`."""

    def cancel(self, job: Job) -> None:
        """Stop the job with everything it started; returns when it is gone.

        Raises InfrastructureError when that cannot be confirmed.
        """

    def leave(self, job: Job) -> None:
        """Somebody else has the job's claim: stop what dies with this process, leave what can be attached to."""
