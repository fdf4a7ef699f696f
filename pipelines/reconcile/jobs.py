"""Cluster jobs against the attempts that submitted them."""

from __future__ import annotations

from m4v.core.errors import ConfigError, InputError
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

    None where Slurm's commands are not; raises InfrastructureError when Slurm does not answer, or a job does not end.
    """
    slurm = client or SlurmClient()
    try:
        live = slurm.live()
    except ConfigError:
        return None
    found = []
    for name, job in live:
        attempts = _attempts_of(ledger, name)
        if not attempts or ledger.holder(attempts[0].stage_key) is not None:
            continue
        finding = _judged(name, job, attempts[0], cancel_unwatched)
        if apply and finding.repaired:
            cancel_job(slurm, job.job_id)
        found.append(finding if apply else _not_done(finding))
    return found


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


def _not_done(finding: Finding) -> Finding:
    return Finding(kind=finding.kind, subject=finding.subject, says=finding.says, repair=finding.repair, repaired=False)
