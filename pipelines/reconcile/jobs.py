"""Cluster jobs against the attempts that submitted them."""

from __future__ import annotations

from dataclasses import replace

from m4v.core.errors import ConfigError, InfrastructureError, InputError
from pipelines.launchers.base import attempt_of_job
from pipelines.launchers.slurm import cancel_job
from pipelines.launchers.slurm_client import JobState, SlurmClient
from pipelines.ledger import AttemptRow, Ledger, Status
from pipelines.reconcile.findings import Finding, FindingKind

_NO_VERDICT = (Status.RUNNING, Status.LOST)


def reconcile_jobs(
    ledger: Ledger, *, apply: bool, cancel_unwatched: bool, client: SlurmClient | None = None
) -> list[Finding] | None:
    """Cancel live jobs of this user whose attempt has a verdict. One without a verdict that nobody waits for is told,
    and cancelled only when `cancel_unwatched`: the next run of its stage attaches to it. Jobs that this ledger does
    not know are another's, and left alone.

    A job that does not end is told as not repaired. None where Slurm's commands are not, or know no cluster; raises
    InfrastructureError when Slurm does not answer.
    """
    slurm = client or SlurmClient()
    try:
        live = slurm.live()
    except ConfigError:
        return None
    lost, _ = ledger.lost()
    found = []
    for name, job in live:
        attempts = _attempts_of(ledger, name)
        if not attempts or ledger.holder(attempts[0].stage_key) is not None:
            continue
        if attempts[0].status is Status.RUNNING and attempts[0].attempt_id not in lost:
            continue  # its holder is only late in renewing the lease
        finding = _judged(name, job, attempts[0], cancel_unwatched)
        found.append(_cancelled(slurm, finding) if apply and finding.repaired else replace(finding, repaired=False))
    return found


def _cancelled(slurm: SlurmClient, finding: Finding) -> Finding:
    try:
        cancel_job(slurm, finding.subject)
    except InfrastructureError as error:  # the other jobs have their turn all the same
        return replace(finding, repair=f"asked to end: {error.message}", repaired=False)
    return finding


def _attempts_of(ledger: Ledger, name: str) -> list[AttemptRow]:
    """Attempts that launched, or attached to, the job of this name, newest first."""
    attempt_id = attempt_of_job(name)
    if attempt_id is None:
        return []
    try:
        submitted = ledger.attempt(attempt_id)
    except InputError:
        return []
    return [a for a in ledger.attempts(stage_key=submitted.stage_key, limit=None) if a.job == name]


def _judged(name: str, job: JobState, attempt: AttemptRow, cancel_unwatched: bool) -> Finding:
    where = f"job {job.job_id} ({name}, {job.state.lower()}{f' on {job.nodes}' if job.nodes else ''})"
    if attempt.status not in _NO_VERDICT:
        return Finding(
            kind=FindingKind.ORPHAN_JOB, subject=job.job_id, repair="cancelled", repaired=True,
            says=f"{where} lives on, attempt {attempt.attempt_id} of {attempt.stage} has ended: {attempt.status}",
        )  # fmt: skip
    return Finding(
        kind=FindingKind.UNWATCHED_JOB, subject=job.job_id, repaired=cancel_unwatched,
        says=f"nobody waits for {where} of stage {attempt.stage}",
        repair="cancelled" if cancel_unwatched else "run its recipe again, which attaches to it; or --cancel-unwatched",
    )  # fmt: skip
