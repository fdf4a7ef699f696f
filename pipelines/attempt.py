"""Runs one node under a claim: adopt what a dead attempt finished, or launch; then publish and commit.

A crash at any point leaves something that the next call goes on from: resume state of the stage, a finished
`result.json`, published bytes without their ledger row. None of these is ever a half artifact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from m4v.core.errors import DataIntegrityError, Drained, ExitClass, InfrastructureError, InputError, M4VError
from m4v.core.storage import Storage
from pipelines.assignment import Assignment
from pipelines.drains import DrainRequests
from pipelines.exposure.states import record_outputs
from pipelines.holds import hold_outputs
from pipelines.launchers import LOG, Launcher
from pipelines.launching import AttemptError, AttemptLauncher, Finished, attempt_dirs, prune, read_result
from pipelines.lease import Lease
from pipelines.ledger import ClaimLost, Exactness, Ledger, NewRun, Status
from pipelines.lookup import Output
from pipelines.provenance import read_record
from pipelines.store import ArtifactStore
from pipelines.takedown.blocklist import BlockLists
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class RetryPolicy:
    """Only infrastructure failures are retried: attempt n waits base_s * factor**(n-1), at most max_s.

    - attempts: failures in a row; one that got further than all before it starts the row anew.
    - in_all: attempts of one pipeline run, preempted ones too, which count nowhere else.
    """

    attempts: int = 3
    in_all: int = 100
    base_s: float = 2.0
    factor: float = 4.0
    max_s: float = 60.0

    def pause_s(self, number: int) -> float:
        return min(self.base_s * self.factor ** (max(number, 1) - 1), self.max_s)


@dataclass(frozen=True)
class Committed:
    """`note` tells what was unusual: retries, an adopted result."""

    run_id: str
    attempt_id: str
    outputs: Mapping[str, Output]
    note: str = ""


class _Failures:
    """Counts the failures of a node in one pipeline run, and decides whether there is another attempt."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy, self._crashes, self._all, self._furthest = policy, 0, 0, 0.0
        self.number = 0

    def allows_another(self, error: M4VError, done: float | None) -> bool:
        """Marks a second crash as the bug that it is."""
        self._all += 1
        preempted = isinstance(error, AttemptError) and error.preempted
        if done is not None and done > self._furthest:
            self._furthest, self.number = done, 0  # it works, if not for long enough: its failures are not one
        self.number += not preempted
        self._crashes += isinstance(error, AttemptError) and error.crash
        if isinstance(error, AttemptError) and self._crashes > 1:
            error.exit_class = ExitClass.BUG
        again = preempted or error.exit_class is ExitClass.INFRASTRUCTURE
        return again and self.number < self._policy.attempts and self._all < self._policy.in_all


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
        self._jobs = AttemptLauncher(ledger, launcher, workspace, drains, admits)

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
        count = _Failures(self._retry)
        while True:
            lease.check()
            try:
                # A job that still runs is waited for; after a failed publish the result is still there.
                running = self._jobs.attached(work, lease)
                if running is not None:
                    return self._publish(work, running, lease)
                return self._adopted(work, lease) or self._publish(work, self._jobs.launch(work, lease), lease)
            except ClaimLost:
                raise
            except (InfrastructureError, AttemptError) as error:
                if not count.allows_another(error, self._done(error)):
                    raise
                self._pause(work, lease, count.number, error)

    def _done(self, error: M4VError) -> float | None:
        """How far the failed attempt was, in its stage's units."""
        if not isinstance(error, AttemptError):
            return None
        progress = self._ledger.attempt(error.attempt_id).progress
        return None if progress is None else float(progress.get("done") or 0)

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
        for work_dir in attempt_dirs(self._workspace, work.record.stage_key):
            result = read_result(work_dir, work.record.stage_key)
            if result is None:
                continue
            # The home may have been moved since: staging lies below its attempt, wherever that is now.
            staged = [o.model_copy(update={"staging": str(work_dir / "staging" / o.name)}) for o in result.outputs]
            result = result.model_copy(update={"outputs": tuple(staged)})
            try:
                committed = self._publish(work, Finished(result, work_dir), lease)
            except DataIntegrityError as error:
                work.on_note(f"result of attempt {result.attempt_id} cannot be used: {error.what}")
                prune(work_dir)
                continue
            return replace(committed, note=f"adopted the finished result of attempt {result.attempt_id}")
        return None

    # Publishing

    def _publish(self, work: Assignment, finished: Finished, lease: Lease) -> Committed:
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

    def _known_attempt(self, work: Assignment, finished: Finished, lease: Lease) -> str:
        """The attempt's id; one the ledger has never seen (its row was lost with a ledger) is recorded anew."""
        # Several attempts may have waited for the same job, one after the other: the last of them ends with it.
        rows = self._ledger.attempts(stage_key=finished.result.stage_key, limit=None)
        same = [row.attempt_id for row in rows if row.work_dir == str(finished.work_dir)]
        if same:
            return same[0]
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
        for work_dir in attempt_dirs(self._workspace, stage_key):
            prune(work_dir)
