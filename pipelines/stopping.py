"""Stops a running pipeline run: `drain` asks it to save its state, `cancel` asks, waits, then kills.

A cancellation is confirmed only when the run has ended and no process of it is left. Killed itself, the same call goes
on: the request stands in the ledger.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from m4v.core.errors import InfrastructureError, InputError
from pipelines.launchers import Job
from pipelines.launchers.base import ask_to_drain
from pipelines.launchers.earlier import cancel_jobs, live_jobs, perhaps_alive
from pipelines.ledger import AttemptRow, DrainRow, Ledger, PipelineRunRow, RunRow, Status
from pipelines.ledger.process import host_name, is_dead, process_token
from pipelines.processes import Process, identify, kill_leftovers, send, survivors

POLL_S = 0.25
SETTLE_S = 10.0  # for a run whose stages were killed to write down its end
RUNNER_S = 5.0  # between SIGTERM and SIGKILL of the process that conducts the run


@dataclass(frozen=True)
class Stopped:
    """How a cancelled run ended. `killed`: processes that had to be; none when it drained in time."""

    pipeline_run_id: str
    status: Status
    killed: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        return {
            "pipeline_run_id": self.pipeline_run_id, "status": str(self.status), "killed": self.killed,
            "seconds": self.seconds, "confirmed": True,
        }  # fmt: skip


def drain(ledger: Ledger, identity: str, *, by: str, reason: str) -> DrainRow:
    """Ask a pipeline run, or the one stage that an attempt runs, to save its state and stop; returns at once.

    Raises InputError for what is not running. Asking again changes nothing.
    """
    row = _running(ledger, identity)
    if isinstance(row, AttemptRow):
        return ledger.request_drain(stage_key=row.stage_key, reason=reason, requested_by=by)
    return ledger.request_drain(pipeline_run_id=row.pipeline_run_id, reason=reason, requested_by=by)


def _running(ledger: Ledger, identity: str) -> PipelineRunRow | AttemptRow:
    row = ledger.resolve(identity)
    if isinstance(row, RunRow):
        raise InputError("this stage run is committed", value=identity, next_step=f"m4v runs show {identity}")
    if not isinstance(row, PipelineRunRow | AttemptRow):
        raise InputError("this is no run", value=identity, next_step="m4v runs list --status running")
    if row.status is not Status.RUNNING:
        raise InputError(f"it has ended: {row.status}", value=identity, next_step=f"m4v runs show {identity}")
    return row


def _quiet(_: str) -> None:
    return None


def _attempts(ledger: Ledger, pipeline_run_id: str) -> list[AttemptRow]:
    return ledger.attempts(pipeline_run_id=pipeline_run_id, limit=None)


class Cancellation:
    """One cancellation of a pipeline run."""

    def __init__(self, ledger: Ledger, identity: str, tell: Callable[[str], None] = _quiet) -> None:
        row = ledger.resolve(identity)
        if not (isinstance(row, PipelineRunRow) and perhaps_alive(_attempts(ledger, row.pipeline_run_id))):
            row = _running(ledger, identity)  # what has ended may have left cluster jobs
        if isinstance(row, AttemptRow):
            owner = f"cancel its pipeline run: m4v runs cancel {row.pipeline_run_id}"
            step = owner if row.pipeline_run_id else f"m4v runs drain {identity}"
            raise InputError("this is an attempt of a stage", value=identity, next_step=step)
        self._ledger, self._id, self._host, self._tell = ledger, row.pipeline_run_id, row.host, tell
        self._runner = ledger.runner_of(row.pipeline_run_id)
        self._killed: set[Process] = set()

    def run(self, *, by: str, reason: str, grace_s: float) -> Stopped:
        """Drain for `grace_s` seconds, then kill; returns when nothing of the run is left.

        Raises InfrastructureError when that cannot be confirmed: its processes are another host's, or do not die.
        """
        started = time.monotonic()
        if self._status() is Status.RUNNING:
            self._ledger.request_drain(pipeline_run_id=self._id, reason=reason, requested_by=by)
        for job in self._jobs():  # nobody may be waiting for them who would pass the request on
            ask_to_drain(job.work_dir)
        self._tell(f"asked run {self._id} to save its state and stop; killing it after {grace_s:g} s")
        if not self._wait(grace_s):
            self._check_reach()
            self._kill()
        status = self._status()
        seconds = time.monotonic() - started
        self._ledger.record_cancelled(self._id, by=by, reason=reason, killed=len(self._killed), status=status)
        return Stopped(self._id, status, len(self._killed), seconds)

    def _status(self) -> Status:
        return self._ledger.pipeline_run(self._id).status

    def _folders(self) -> list[Path]:
        return [Path(a.work_dir) for a in _attempts(self._ledger, self._id) if a.host == host_name()]

    def _jobs(self) -> list[Job]:
        return live_jobs(_attempts(self._ledger, self._id))

    def _gone(self) -> bool:
        """The run has written down its end, and nothing that it started here or on a cluster is alive."""
        if self._status() is Status.RUNNING or any(survivors(folder) for folder in self._folders()):
            return False
        return not self._jobs()

    def _wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._gone():
            if self._dead():
                self._ledger.reap()  # its process is gone: nobody else will write down the end
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _dead(self) -> bool:
        return is_dead(self._runner)

    def _check_reach(self) -> None:
        here = process_token().split("/")[:2] == self._runner.split("/")[:2]
        if self._status() is Status.RUNNING and (self._host != host_name() or not here):
            raise InfrastructureError(
                "the run has not drained in time and its processes cannot be reached from here",
                value=self._id,
                where=f"host {self._host}",
                next_step=f"m4v runs cancel {self._id} on that host; the drain request stands",
            )

    def _kill(self) -> None:
        """Stages first: the run, which knows that it is to drain, then ends by itself. Else it is ended."""
        self._tell("the time is up: killing its stages")
        self._kill_stages()
        if self._wait(SETTLE_S):
            return
        self._tell("killing the process that conducts it")
        self._kill_runner()
        self._kill_stages()
        if not self._wait(SETTLE_S):
            left = [p.pid for folder in self._folders() for p in survivors(folder)]
            raise InfrastructureError(
                "the cancellation is not confirmed: processes are left", value=left or self._id,
                next_step=f"m4v runs cancel {self._id} again, or m4v doctor",
            )  # fmt: skip

    def _kill_stages(self) -> None:
        cancel_jobs(self._jobs())
        for folder in self._folders():
            self._killed.update(kill_leftovers(folder))

    def _kill_runner(self) -> None:
        pid = int(self._runner.rpartition("/")[0].rpartition("/")[2])
        process = identify(pid)
        if process is None or pid == os.getpid() or self._dead():
            return
        for number, wait_s in ((signal.SIGTERM, RUNNER_S), (signal.SIGKILL, RUNNER_S)):
            send(process, number)
            deadline = time.monotonic() + wait_s
            while not self._dead() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if self._dead():
                self._killed.add(process)
                return
