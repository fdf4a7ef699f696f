"""Launches an attempt of a claimed node, or attaches to the job that an earlier process left, and waits for its end."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from m4v.core.errors import Drained, ExitClass, M4VError
from m4v.core.stage import RESULT, StageRequest, StageResult, read_exits, write_json
from pipelines.assignment import Assignment, stage_request
from pipelines.drains import DrainRequests
from pipelines.launchers import LOG, REQUEST, Ending, Job, Launcher, job_name
from pipelines.launchers.earlier import cancel_jobs, live_jobs, perhaps_alive
from pipelines.lease import Lease
from pipelines.ledger import AttemptRow, Ledger, new_id
from pipelines.ledger.supervision import ATTACHED, SUBMITTED
from pipelines.nodes import NodeHealth
from pipelines.provenance import BlobStore, code_state, recorded_request, write_record
from pipelines.watch import Watch
from pipelines.workspace import Workspace


class AttemptError(M4VError):
    """An attempt ended without a result; `exit_class` is the attempt's."""

    def __init__(self, ending: Ending, attempt_id: str, log: Path) -> None:
        self.exit_class, self.crash, self.attempt_id, self.log = ending.exit_class, ending.crash, attempt_id, log
        self.preempted = ending.preempted
        super().__init__(ending.message or f"stage ended with class {ending.exit_class.name}")


@dataclass(frozen=True)
class Finished:
    """A result on disk, its outputs in staging (or in the store, after a crash between publish and commit)."""

    result: StageResult
    work_dir: Path


class AttemptLauncher:
    """The services that launching needs; one for a pipeline run, used from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        launcher: Launcher,
        workspace: Workspace,
        drains: DrainRequests,
        admits: Collection[str],
    ) -> None:
        self._ledger, self._launcher, self._workspace, self._drains = ledger, launcher, workspace, drains
        self._admits, self._nodes = admits, NodeHealth(ledger, launcher)
        self._blobs = BlobStore(workspace.store_uri)

    def launch(self, work: Assignment, lease: Lease) -> Finished:
        """Run a new attempt to its end. Raises AttemptError, Drained, ClaimLost or what the launcher raises."""
        if self._drains.wanted(lease.claim) is not None or self._drains.flag.is_set():
            raise Drained("drained before it started", where=work.node.id)
        for stale in attempt_dirs(self._workspace, work.record.stage_key):
            prune(stale)
        request = stage_request(work, new_id(), self._workspace, self._launcher)
        work_dir = Path(request.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)  # the facts may lie in it already
        write_json(work_dir / REQUEST, request)
        write_record(work_dir, code_state(self._blobs), recorded_request(request, self._blobs))
        attempt_id = self._begin(work, lease, request.attempt_id, work_dir)
        try:
            job = self._submit(request)
        except M4VError as error:
            self._ledger.finish_attempt(attempt_id, error.exit_class, error.message)
            raise
        return self._wait(work, lease, attempt_id, job)

    def _begin(self, work: Assignment, lease: Lease, attempt_id: str, work_dir: Path) -> str:
        return self._ledger.begin_attempt(
            lease.claim,
            stage=work.node.spec.name,
            work_dir=str(work_dir),
            log_path=str(work_dir / LOG),
            launcher=self._launcher.name,
            pipeline_run_id=work.pipeline_run_id,
            node_id=work.node.id,
            attempt_id=attempt_id,
            inputs=work.inputs,
            admits=self._admits,
        )

    def _submit(self, request: StageRequest) -> Job:
        attempt_id = request.attempt_id
        if not self._launcher.outlives:
            job = self._launcher.submit(request)
            self._ledger.launched(attempt_id, pid=int(job.reference), job=job.name)
            return job
        # The name first: whoever comes after a crash finds the job by it, or finds that there is none.
        self._ledger.launched(attempt_id, job=job_name(request.stage_key, attempt_id))
        exclude = self._nodes.excluded(attempt_id)
        job = self._launcher.submit(request, exclude)
        self._ledger.record_supervision(attempt_id, SUBMITTED, {"job_id": job.reference, "exclude": list(exclude)})
        return job

    # Attaching

    def attached(self, work: Assignment, lease: Lease) -> Finished | None:
        """Wait for the job that a dead process submitted for this key; None when there is none.

        A job of another launcher is cancelled: two must not write the same state.
        """
        rows = perhaps_alive(self._ledger.attempts(stage_key=work.record.stage_key, limit=None))
        if not rows:
            return None
        if not self._launcher.outlives:
            cancel_jobs(live_jobs(rows))
            return None
        for row in rows:
            job = self._launcher.attach(str(row.job), Path(row.work_dir))
            if job is not None:
                work.on_note(f"attached to job {job.reference} of attempt {row.attempt_id}")
                return self._wait(work, lease, self._take_over(work, lease, row, job), job)
        return None

    def _take_over(self, work: Assignment, lease: Lease, row: AttemptRow, job: Job) -> str:
        """A new attempt in the ledger, in the place of the one whose watcher died."""
        attempt_id = self._begin(work, lease, new_id(), job.work_dir)
        self._ledger.launched(attempt_id, job=job.name)
        self._ledger.record_supervision(attempt_id, ATTACHED, {"job_id": job.reference, "submitted_by": row.attempt_id})
        return attempt_id

    # Waiting

    def _wait(self, work: Assignment, lease: Lease, attempt_id: str, job: Job) -> Finished:
        ending = Watch(self._ledger, self._launcher, lease, self._drains).wait(job, attempt_id, work.on_progress)
        result = read_result(job.work_dir, work.record.stage_key) if ending.exit_class is ExitClass.OK else None
        if ending.exit_class is ExitClass.OK and result is None:
            ending = Ending(ExitClass.BUG, "the stage ended well but left no result")
        if result is None:
            self._ledger.finish_attempt(attempt_id, ending.exit_class, ending.message)
            self._nodes.failed(attempt_id, ending)
            raise AttemptError(ending, attempt_id, job.work_dir / LOG)
        return Finished(result.model_copy(update={"attempt_id": attempt_id}), job.work_dir)


def attempt_dirs(workspace: Workspace, stage_key: str) -> Iterator[Path]:
    """Newest first: attempt ids sort by time."""
    base = workspace.stage_work(stage_key)
    yield from sorted((p for p in base.glob("*") if p.is_dir()), reverse=True)


def read_result(work_dir: Path, stage_key: str) -> StageResult | None:
    """The attempt's result; None when there is none, it is of another key, or a rank says it failed."""
    try:
        result = StageResult.model_validate_json((work_dir / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None
    good = result.stage_key == stage_key and all(e.exit_class == ExitClass.OK for e in read_exits(work_dir))
    return result if good else None


def prune(work_dir: Path) -> None:
    """What a later attempt cannot use: its resume state lies elsewhere."""
    for name in ("staging", "scratch", "cache"):
        shutil.rmtree(work_dir / name, ignore_errors=True)
    (work_dir / RESULT).unlink(missing_ok=True)
