"""Cluster jobs that earlier attempts left, found by the names that the ledger holds, whatever the profile is now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from m4v.core.errors import ConfigError, InfrastructureError
from pipelines.launchers.base import Job
from pipelines.launchers.slurm import SlurmLauncher, cancel_job
from pipelines.launchers.slurm_client import SlurmClient
from pipelines.launchers.slurm_files import read_end
from pipelines.ledger import AttemptRow, Status

_OPEN = (Status.RUNNING, Status.LOST)


def perhaps_alive(attempts: Iterable[AttemptRow]) -> list[AttemptRow]:
    """Attempts without a verdict that had a cluster job which has not written its last word."""
    return [
        a for a in attempts
        if a.launcher == SlurmLauncher.name and a.status in _OPEN and a.job and read_end(Path(a.work_dir)) is None
    ]  # fmt: skip


def live_jobs(attempts: Iterable[AttemptRow], client: SlurmClient | None = None) -> list[Job]:
    """Their jobs that Slurm still runs or queues. Raises InfrastructureError when Slurm cannot be asked here."""
    found: dict[str, Job] = {}
    for attempt in perhaps_alive(attempts):
        name = str(attempt.job)
        try:
            states = (client or SlurmClient()).named(name)
        except ConfigError:
            raise InfrastructureError(
                "an earlier attempt's Slurm job may still run, and Slurm cannot be asked here", value=name,
                next_step="run on a machine of the cluster",
            ) from None  # fmt: skip
        for state in states:
            if state.is_live:
                found[state.job_id] = Job(name, Path(attempt.work_dir), state.job_id)
    return list(found.values())


def cancel_jobs(jobs: Iterable[Job], client: SlurmClient | None = None) -> None:
    """Cancel and wait for the confirmation of each; raises InfrastructureError without it."""
    for job in jobs:
        cancel_job(client or SlurmClient(), job.reference)
