"""Runs stages as Slurm jobs: one job an attempt, which goes on when the process that submitted it dies.

Home and store must lie on a file system that every node sees under the same path.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m4v.core.errors import ConfigError, InfrastructureError
from m4v.core.local_files import write_atomic
from m4v.core.stage import Resources, StageRequest, write_json
from pipelines.environment import Target, architecture, kernel_set
from pipelines.launchers.base import DRAIN_ASKED, STACKS, Ending, Job, NodePolicy, ask_to_drain, job_name
from pipelines.launchers.slurm_client import JobState, SlurmClient
from pipelines.launchers.slurm_config import SlurmConfig
from pipelines.launchers.slurm_endings import ending_of_job, ending_of_state
from pipelines.launchers.slurm_files import (
    CURRENT,
    SCRIPT,
    SPEC,
    JobEnd,
    read_end,
    read_spec,
    read_starts,
    write_end,
)
from pipelines.launchers.slurm_script import job_spec, render
from training.heartbeat import HangLimits

GPU_ARCHITECTURE = "sm_"
CANCEL_S = 120.0  # Slurm's own KillWait is 30 s, on top of a node's answer
LOOK_S = 0.5  # between two looks at the job's files
WORD_S = 10.0  # for the last word of an ended job to come through a network file system

_log = logging.getLogger(__name__)


@dataclass
class _Eyes:
    """When to ask Slurm about a job again, and since when it is known to have ended. A job that is waited for must not
    be asked after by several threads."""

    ask_at: float = 0.0
    ended_at: float | None = None
    state: JobState | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class SlurmLauncher:
    """`lock_file` names the lock file of the nodes' environment."""

    name, outlives = "slurm", True

    def __init__(
        self,
        config: SlurmConfig,
        lock_file: str | None = None,
        hang: HangLimits = HangLimits(),  # noqa: B008 - frozen
        client: SlurmClient | None = None,
    ) -> None:
        self._config, self._lock_file, self._client = config, lock_file, client or SlurmClient()
        self._eyes: dict[str, _Eyes] = {}
        self._guard = threading.Lock()
        self.nodes: NodePolicy | None = NodePolicy(config.exclude_after, config.exclude_days)
        self.hang = hang

    def target(self, resources: Resources) -> Target:
        """Raises ConfigError when the profile does not say what the nodes' device is and this machine cannot."""
        self._config.nodes(resources.ranks)
        stated = self._config.architecture
        if resources.device == "cpu" and (stated is None or stated.startswith(GPU_ARCHITECTURE)):
            named, kernels = architecture("cpu"), kernel_set("cpu")
        elif stated is not None:
            named, kernels = stated, self._config.kernels
        else:
            raise ConfigError(
                "the profile does not say what the nodes' GPUs are", where="profile: slurm.architecture",
                next_step="set slurm.architecture (sm_90 for H100 and H200) and slurm.kernels",
            )  # fmt: skip
        return Target(device=resources.device, architecture=named, kernels=kernels, lock_file=self._lock_file)

    # Submitting

    def submit(self, request: StageRequest, exclude: Sequence[str] = ()) -> Job:
        work_dir = Path(request.work_dir)
        name = job_name(request.stage_key, request.attempt_id)
        there = self.attach(name, work_dir)
        if there is not None:
            return there
        config = self._config.of_stage(request.stage)
        write_json(work_dir / SPEC, job_spec(request, config))
        write_atomic(work_dir / SCRIPT, render(request, config, exclude).encode())
        # From here on a job of an earlier attempt that comes late finds that it is no longer wanted.
        write_atomic(work_dir.parent / CURRENT, request.attempt_id.encode())
        try:
            return Job(name, work_dir, self._client.submit(work_dir / SCRIPT))
        except InfrastructureError:
            there = self.attach(name, work_dir)  # the answer was lost, perhaps not the job
            if there is None:
                raise
            return there

    def attach(self, name: str, work_dir: Path) -> Job | None:
        live = next((job for job in self._client.named(name) if job.is_live), None)
        return None if live is None or read_end(work_dir) is not None else Job(name, work_dir, live.job_id)

    # Watching

    def poll(self, job: Job, wait_s: float) -> Ending | None:
        deadline = time.monotonic() + wait_s
        while True:
            ending = self._look(job)
            left = deadline - time.monotonic()
            if ending is not None or left <= 0:
                return ending
            time.sleep(min(left, LOOK_S))

    def starts(self, job: Job) -> list[dict[str, object]]:
        return [start.canonical() for start in read_starts(job.work_dir)]

    def _look(self, job: Job) -> Ending | None:
        end = read_end(job.work_dir)
        if end is not None:
            return ending_of_job(end, read_spec(job.work_dir), job.work_dir)
        eyes = self._eyes_of(job)
        with eyes.lock:
            if time.monotonic() >= eyes.ask_at:
                eyes.ask_at = time.monotonic() + self._config.poll_s
                self._ask(job, eyes)
            silent = eyes.ended_at is not None and time.monotonic() - eyes.ended_at > WORD_S
        return self._without_a_word(job, eyes.state) if silent else None

    def _eyes_of(self, job: Job) -> _Eyes:
        with self._guard:
            return self._eyes.setdefault(job.name, _Eyes())

    def _ask(self, job: Job, eyes: _Eyes) -> None:
        try:
            eyes.state = self._client.state(job.reference)
            if eyes.state is None or not eyes.state.is_live:
                eyes.ended_at = eyes.ended_at or time.monotonic()
                return
            eyes.ended_at = None
            if eyes.state.state == "PENDING" and eyes.state.reason == "BeginTime" and read_starts(job.work_dir):
                self._client.start_now(job.reference)
        except InfrastructureError as error:
            # The job goes on without its controller, and its own files tell how it ended.
            _log.warning("job %s: %s", job.reference, error)

    def _without_a_word(self, job: Job, state: JobState | None) -> Ending:
        ending = ending_of_state(state, self._down(job, state), (job.work_dir / DRAIN_ASKED).exists())
        write_end(job.work_dir, JobEnd(exit_class=ending.exit_class, message=ending.message, lost=ending.nodes))
        return ending

    def _down(self, job: Job, state: JobState | None) -> list[str]:
        starts = read_starts(job.work_dir)
        try:
            nodes = self._client.hostnames(state.nodes) if state is not None and state.nodes else []
            return self._client.down(nodes or (starts[-1].nodes if starts else ()))
        except InfrastructureError as error:
            _log.warning("nodes of job %s: %s", job.reference, error)
            return []

    # Stopping

    def drain(self, job: Job) -> None:
        """A job that still waits for its place is taken out of the queue: there is no state to save."""
        ask_to_drain(job.work_dir)
        try:
            state = self._client.state(job.reference)
            if state is not None and state.state == "PENDING":
                self._client.cancel(job.reference)
        except InfrastructureError as error:
            _log.warning("job %s: %s", job.reference, error)  # the files stand: it drains as soon as it starts

    def is_running(self, job: Job) -> bool:
        state, starts = self._eyes_of(job).state, read_starts(job.work_dir)
        return state is not None and state.state == "RUNNING" and bool(starts) and not starts[-1].ended

    def dump_stacks(self, job: Job) -> None:
        write_atomic(job.work_dir / STACKS, b"")

    def cancel(self, job: Job) -> None:
        cancel_job(self._client, job.reference)

    def leave(self, job: Job) -> None:
        """The job is the other one's now."""


def cancel_job(client: SlurmClient, job_id: str, timeout_s: float = CANCEL_S) -> None:
    """Cancel a job and wait until Slurm says that it has ended on every node; raises InfrastructureError otherwise."""
    deadline = time.monotonic() + timeout_s
    client.cancel(job_id)
    while True:
        state = client.state(job_id)
        if state is None or not state.is_live:
            return
        if time.monotonic() >= deadline:
            raise InfrastructureError(
                f"the cancellation is not confirmed: Slurm says {state.state}", value=job_id, where=state.nodes,
                next_step=f"squeue -j {job_id}; an administrator can set the node down",
            )  # fmt: skip
        time.sleep(min(LOOK_S, max(deadline - time.monotonic(), 0.0)))
