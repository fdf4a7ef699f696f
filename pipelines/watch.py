"""Waits for a launched attempt: copies its progress, passes drain requests on, cancels it when the claim is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from m4v.core.errors import ExitClass, InfrastructureError
from m4v.core.stage import Progress
from pipelines.drains import DrainRequests, as_asked
from pipelines.hangs import HangWatch
from pipelines.launchers import Ending, Job, Launcher
from pipelines.lease import Lease
from pipelines.ledger import ClaimLost, DrainRow, Ledger
from pipelines.ledger.supervision import STARTED

HEARTBEAT_S = 2.0
POLL_S = 0.5
FIRST_POLL_S = 0.05

_log = logging.getLogger(__name__)


class Watch:
    """The eyes of one attempt."""

    def __init__(self, ledger: Ledger, launcher: Launcher, lease: Lease, drains: DrainRequests) -> None:
        self._ledger, self._launcher, self._lease, self._drains = ledger, launcher, lease, drains

    def wait(self, job: Job, attempt_id: str, on_progress: Callable[[Progress], None]) -> Ending:
        """How the job ended. A second Ctrl-C, a lost claim or any fault of ours cancels it and goes on as an
        exception: no job runs without somebody who waits for it."""
        pulse = _Pulse(self._ledger, attempt_id, job.work_dir, on_progress)
        hangs, starts = HangWatch(self._ledger, self._launcher, job, attempt_id), _Starts(self._ledger, attempt_id)
        wait_s, asked = FIRST_POLL_S, False
        request: DrainRow | None = None
        try:
            while True:
                ending = self._launcher.poll(job, wait_s)
                starts.copy(self._launcher.starts(job))
                if ending is not None:
                    return _with_reason(ending, request)
                self._lease.check()
                request = request or self._drains.wanted(self._lease.claim)
                if (request is not None or self._drains.flag.is_set()) and not asked:
                    self._launcher.drain(job)
                    asked = True
                pulse.beat()
                hang = hangs.found()
                if hang is not None:
                    return hang
                wait_s = min(wait_s * 1.5, POLL_S)
        except BaseException as stop:
            if isinstance(stop, ClaimLost):
                self._launcher.leave(job)
            else:
                self._launcher.cancel(job)
            self._ledger.finish_attempt(
                attempt_id, ExitClass.INFRASTRUCTURE, f"cancelled: {stop or type(stop).__name__}"
            )
            raise


def _with_reason(ending: Ending, request: DrainRow | None) -> Ending:
    """Who wanted a drained job to stop, and why."""
    if ending.exit_class is not ExitClass.DRAINED or request is None:
        return ending
    return replace(ending, message=f"{ending.message or 'drained'}{as_asked(request)}")


class _Starts:
    """Copies what is known of a cluster job's starts into the ledger, each line once."""

    def __init__(self, ledger: Ledger, attempt_id: str) -> None:
        self._ledger, self._attempt_id = ledger, attempt_id
        self._copied = 0

    def copy(self, starts: Sequence[Mapping[str, object]]) -> None:
        for start in starts[self._copied :]:
            try:
                self._ledger.record_supervision(self._attempt_id, STARTED, start)
            except InfrastructureError as error:
                _log.warning("a start of attempt %s was not recorded: %s", self._attempt_id, error)
                return
            self._copied += 1


class _Pulse:
    """Copies `progress.json` into the ledger and to the caller while an attempt runs."""

    def __init__(
        self, ledger: Ledger, attempt_id: str, work_dir: Path, on_progress: Callable[[Progress], None]
    ) -> None:
        self._ledger, self._attempt_id, self._on_progress = ledger, attempt_id, on_progress
        self._path = work_dir / "progress.json"
        self._seen: Progress | None = None
        self._beat_at = 0.0

    def beat(self) -> None:
        progress = self._read()
        if progress is None or progress == self._seen:
            return
        changed = self._seen is None or progress.updated_at != self._seen.updated_at
        self._seen = progress
        if changed:
            self._show(progress)
        if time.monotonic() - self._beat_at >= HEARTBEAT_S:
            self._beat_at = time.monotonic()
            try:
                self._ledger.heartbeat(self._attempt_id, progress)
            except InfrastructureError as error:
                # A moment without a database must not end hours of work; committing will tell.
                _log.warning("heartbeat of attempt %s was not recorded: %s", self._attempt_id, error)

    def _show(self, progress: Progress) -> None:
        try:
            self._on_progress(progress)
        except Exception as error:  # whoever looks on (a terminal, a server's page) must not end the stage
            _log.warning("progress of attempt %s could not be shown: %s", self._attempt_id, error)

    def _read(self) -> Progress | None:
        try:
            return Progress.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None
