"""Runs one node under a claim: adopt what a dead attempt finished, or launch; then publish and commit.

A crash at any point leaves something that the next call goes on from: resume state of the stage, a finished
`result.json`, published bytes without their ledger row. None of these is ever a half artifact.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from m4v.core.errors import DataIntegrityError, Drained, ExitClass, InfrastructureError, InputError, M4VError
from m4v.core.stage import (
    RESULT,
    StageResult,
    read_exits,
    write_json,
)
from m4v.core.storage import Storage
from pipelines.assignment import Assignment, stage_request
from pipelines.drains import DrainRequests
from pipelines.exposure.states import record_outputs
from pipelines.holds import hold_outputs
from pipelines.launchers import LOG, REQUEST, Ending, Launcher
from pipelines.lease import Lease
from pipelines.ledger import ClaimLost, Exactness, Ledger, NewRun, Status, new_id
from pipelines.lookup import Output
from pipelines.provenance import BlobStore, code_state, read_record, recorded_request, write_record
from pipelines.store import ArtifactStore
from pipelines.takedown.blocklist import BlockLists
from pipelines.watch import Watch
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class RetryPolicy:
    """Only infrastructure failures are retried: attempt n waits base_s * factor**(n-1), at most max_s."""

    attempts: int = 3
    base_s: float = 2.0
    factor: float = 4.0
    max_s: float = 60.0

    def pause_s(self, number: int) -> float:
        return min(self.base_s * self.factor ** (number - 1), self.max_s)


class AttemptError(M4VError):
    """An attempt ended without a result; `exit_class` is the attempt's."""

    def __init__(self, ending: Ending, attempt_id: str, log: Path) -> None:
        self.exit_class, self.crash, self.attempt_id, self.log = ending.exit_class, ending.crash, attempt_id, log
        super().__init__(ending.message or f"stage ended with class {ending.exit_class.name}")


@dataclass(frozen=True)
class Committed:
    """`note` tells what was unusual: retries, an adopted result."""

    run_id: str
    attempt_id: str
    outputs: Mapping[str, Output]
    note: str = ""


@dataclass(frozen=True)
class _Finished:
    """A result on disk, its outputs in staging (or in the store, after a crash between publish and commit)."""

    result: StageResult
    work_dir: Path


class AttemptRunner:
    """The services that attempts need; one for a pipeline run, used from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        store: ArtifactStore,
        launcher: Launcher,
        workspace: Workspace,
        drains: DrainRequests,
        retry: RetryPolicy,
        admits: Collection[str] = (),
    ) -> None:
        self._ledger, self._store, self._launcher, self._workspace = ledger, store, launcher, workspace
        self._drains, self._retry, self._admits = drains, retry, admits
        self._blobs = BlobStore(store.uri)

    def run(self, work: Assignment, lease: Lease) -> Committed:
        """Bring the node to a committed run, retrying infrastructure failures.

        Raises AttemptError, ClaimLost, Drained, DataIntegrityError or InfrastructureError.
        """
        try:
            return self._run(work, lease)
        except ClaimLost:
            raise
        except M4VError as error:
            self._close_open(work, error)
            raise

    def _run(self, work: Assignment, lease: Lease) -> Committed:
        crashes = 0
        for number in range(1, self._retry.attempts + 1):
            lease.check()
            try:
                # After a failed publish the result is still there: adopting it repeats no work.
                return self._adopted(work, lease) or self._publish(work, self._launch(work, lease), lease)
            except ClaimLost:
                raise
            except (InfrastructureError, AttemptError) as error:
                crashes += isinstance(error, AttemptError) and error.crash
                if isinstance(error, AttemptError) and crashes > 1:
                    error.exit_class = ExitClass.BUG
                if error.exit_class is not ExitClass.INFRASTRUCTURE or number == self._retry.attempts:
                    raise
                self._pause(work, lease, number, error)
        raise AssertionError("the last attempt returns or raises")

    def _close_open(self, work: Assignment, error: M4VError) -> None:
        """Give attempts that finished but could not be published their verdict."""
        try:
            for row in self._ledger.attempts(stage_key=work.record.stage_key, status=Status.RUNNING):
                self._ledger.finish_attempt(row.attempt_id, error.exit_class, error.message)
        except InfrastructureError:
            return  # no ledger to tell: the next attempt of the key closes them as lost

    def _pause(self, work: Assignment, lease: Lease, number: int, error: M4VError) -> None:
        pause_s = self._retry.pause_s(number)
        work.on_note(f"attempt {number} failed ({error.what}); trying again in {pause_s:.0f} s")
        self._drains.pause(pause_s, lease.claim, work.node.id)

    # Adopting

    def _adopted(self, work: Assignment, lease: Lease) -> Committed | None:
        """Record the result of an attempt that finished but died before it was committed, if its bytes are
        still what it says, in staging or already in the store."""
        for work_dir in self._attempt_dirs(work.record.stage_key):
            result = _read_result(work_dir, work.record.stage_key)
            if result is None:
                continue
            # The home may have been moved since: staging lies below its attempt, wherever that is now.
            staged = [o.model_copy(update={"staging": str(work_dir / "staging" / o.name)}) for o in result.outputs]
            result = result.model_copy(update={"outputs": tuple(staged)})
            try:
                committed = self._publish(work, _Finished(result, work_dir), lease)
            except DataIntegrityError as error:
                work.on_note(f"result of attempt {result.attempt_id} cannot be used: {error.what}")
                _prune(work_dir)
                continue
            return replace(committed, note=f"adopted the finished result of attempt {result.attempt_id}")
        return None

    def _attempt_dirs(self, stage_key: str) -> Iterator[Path]:
        """Newest first: attempt ids sort by time."""
        base = self._workspace.stage_work(stage_key)
        yield from sorted((p for p in base.glob("*") if p.is_dir()), reverse=True)

    # Launching

    def _launch(self, work: Assignment, lease: Lease) -> _Finished:
        if self._drains.wanted(lease.claim) is not None or self._drains.flag.is_set():
            raise Drained("drained before it started", where=work.node.id)
        for stale in self._attempt_dirs(work.record.stage_key):
            _prune(stale)
        request = stage_request(work, new_id(), self._workspace, self._launcher)
        work_dir = Path(request.work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)  # the facts may lie in it already
        write_json(work_dir / REQUEST, request)
        write_record(work_dir, code_state(self._blobs), recorded_request(request, self._blobs))
        attempt_id = self._ledger.begin_attempt(
            lease.claim,
            stage=work.node.spec.name,
            work_dir=request.work_dir,
            log_path=str(work_dir / LOG),
            launcher=self._launcher.name,
            pipeline_run_id=work.pipeline_run_id,
            node_id=work.node.id,
            attempt_id=request.attempt_id,
            inputs=work.inputs,
            admits=self._admits,
        )
        job = self._launcher.submit(request)
        pid = int(job.reference) if job.reference.isdigit() else None
        self._ledger.launched(attempt_id, pid=pid, job=job.name)
        ending = Watch(self._ledger, self._launcher, lease, self._drains).wait(job, attempt_id, work.on_progress)
        result = _read_result(work_dir, work.record.stage_key) if ending.exit_class is ExitClass.OK else None
        if ending.exit_class is ExitClass.OK and result is None:
            ending = Ending(ExitClass.BUG, "the stage ended well but left no result")
        if result is None:
            self._ledger.finish_attempt(attempt_id, ending.exit_class, ending.message)
            raise AttemptError(ending, attempt_id, work_dir / LOG)
        return _Finished(result, work_dir)

    # Publishing

    def _publish(self, work: Assignment, finished: _Finished, lease: Lease) -> Committed:
        """Publish every output, commit the run in one transaction, then forget the resume state."""
        result, key = finished.result, work.record.stage_key
        lease.check()
        if work.node.spec.takedowns and BlockLists(self._ledger).probe() != work.record.probe:
            raise Drained("the block list of takedowns grew while it ran", where=work.node.id, next_step="run again")
        used = [(i.artifact_id, i.kind) for i in work.inputs if i.artifact_id not in self._admits]
        self._ledger.refuse_withdrawn([*used, *((o.artifact_id, o.kind) for o in result.outputs)], work.node.id)
        attempt_id = self._known_attempt(work, finished, lease)
        hold_outputs(self._ledger, work.pipeline_run_id, result.outputs)
        records = {o.name: self._store.publish(o) for o in result.outputs}
        for record in records.values():  # before the run is committed: no artifact is known whose clips are not
            self._ledger.index_members(record.artifact_id, record.kind, Storage(record.uri))
        record_outputs(self._ledger, ((r.artifact_id, r.kind, r.uri) for r in records.values()))
        lease.check()
        run = NewRun(
            stage=work.node.spec.name,
            stage_version=work.node.spec.version,
            stage_key=key,
            key_record=work.record.canonical(),
            config=work.record.config,
            code_digest=work.record.code_digest,
            seed=work.node.seed,
            environment={**result.environment, "launcher": self._launcher.name, **read_record(finished.work_dir)},
            exactness=Exactness(str(result.metrics.get("exactness", Exactness.BIT))),
        )
        run_id = self._ledger.commit_run(
            lease.claim, attempt_id, run, work.inputs, records, result.metrics, self._admits
        )
        self.forget(key)
        outputs = {n: Output(r.artifact_id, r.uri, r.kind, r.size_bytes) for n, r in records.items()}
        return Committed(run_id, attempt_id, outputs)

    def _known_attempt(self, work: Assignment, finished: _Finished, lease: Lease) -> str:
        """The attempt's id; one the ledger has never seen (its row was lost with a ledger) is recorded anew."""
        attempt_id = finished.result.attempt_id
        try:
            return self._ledger.attempt(attempt_id).attempt_id
        except InputError:
            return self._ledger.begin_attempt(
                lease.claim,
                stage=work.node.spec.name,
                work_dir=str(finished.work_dir),
                log_path=str(finished.work_dir / LOG),
                launcher=self._launcher.name,
                pipeline_run_id=work.pipeline_run_id,
                node_id=work.node.id,
                attempt_id=attempt_id,
            )

    def forget(self, stage_key: str) -> None:
        """Drop resume state and staging of a key whose run is committed; logs and requests stay."""
        Storage(self._workspace.store_uri).delete(f"state/{stage_key}")
        for work_dir in self._attempt_dirs(stage_key):
            _prune(work_dir)


def _read_result(work_dir: Path, stage_key: str) -> StageResult | None:
    """The attempt's result; None when there is none, it is of another key, or a rank says it failed."""
    try:
        result = StageResult.model_validate_json((work_dir / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None
    good = result.stage_key == stage_key and all(e.exit_class == ExitClass.OK for e in read_exits(work_dir))
    return result if good else None


def _prune(work_dir: Path) -> None:
    """What a later attempt cannot use: its resume state lies elsewhere."""
    for name in ("staging", "scratch", "cache"):
        shutil.rmtree(work_dir / name, ignore_errors=True)
    (work_dir / RESULT).unlink(missing_ok=True)
