"""Notices that the ranks of a running attempt hang: their stacks are kept, the job is stopped, and it starts again."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from m4v.core.errors import ExitClass, InfrastructureError
from pipelines.launchers import Ending, Job, Launcher
from pipelines.ledger import Ledger
from pipelines.ledger.supervision import HUNG
from training.heartbeat import Hang, Heartbeat, find_hang, read_heartbeats

LOOK_S = 5.0
STACKS_S = 5.0  # for every rank to write its stacks, supervisors looking for the request five times a second
_LINES = 12  # of a rank's stacks that go into the ledger: where its first thread stands

_log = logging.getLogger(__name__)


class HangWatch:
    """Looks at the heartbeats of one job. Silence counts only while the job runs and somebody looks: a suspended job
    and a suspended machine, watcher included, do not hang."""

    def __init__(self, ledger: Ledger, launcher: Launcher, job: Job, attempt_id: str) -> None:
        self._ledger, self._launcher, self._job, self._attempt_id = ledger, launcher, job, attempt_id
        self._beats: list[Heartbeat] = []
        self._silent_s = self._looked_at = self._look_at = 0.0

    def found(self) -> Ending | None:
        """The ending of a job that hung and has been stopped; raises InfrastructureError when it cannot be."""
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_S
        beats = read_heartbeats(self._job.work_dir)
        silent_s = self._silent_for(beats, now)
        hang = find_hang(beats, time.time(), self._launcher.hang)
        if hang is None or silent_s <= hang.limit_s:
            return None
        _log.warning("attempt %s hangs: %s", self._attempt_id, hang.message)
        self._launcher.dump_stacks(self._job)
        ranks = [beat.rank for beat in beats]
        stacks = self._stacks(ranks)
        self._record(hang, stacks)
        self._launcher.cancel(self._job)
        return Ending(ExitClass.INFRASTRUCTURE, f"hung: {hang.message}; see {self._job.work_dir}/stacks.*.txt")

    def _silent_for(self, beats: list[Heartbeat], now: float) -> float:
        """Seconds that we have seen the job run without another heartbeat; what passed unseen between two looks is
        worth two of them at the most."""
        if beats == self._beats and self._launcher.is_running(self._job):
            self._silent_s += min(now - self._looked_at, 2 * LOOK_S)
        else:
            self._silent_s = 0.0
        self._beats, self._looked_at = beats, now
        return self._silent_s

    def _stacks(self, ranks: list[int]) -> dict[str, list[str]]:
        """The first lines of what each rank wrote; one that is beyond a signal's reach writes nothing."""
        until = time.monotonic() + STACKS_S
        while time.monotonic() < until:
            if all(_lines(self._job.work_dir, rank) for rank in ranks):
                break
            time.sleep(0.1)
        return {str(rank): _lines(self._job.work_dir, rank)[:_LINES] for rank in ranks}

    def _record(self, hang: Hang, stacks: dict[str, list[str]]) -> None:
        facts = {
            "step": hang.step, "ranks": list(hang.ranks), "silent_s": hang.silent_s, "limit_s": hang.limit_s,
            "stacks": stacks,
        }  # fmt: skip
        try:
            self._ledger.record_supervision(self._attempt_id, HUNG, facts)
        except InfrastructureError as error:
            _log.warning("the hang of attempt %s was not recorded: %s", self._attempt_id, error)


def _lines(work_dir: Path, rank: int) -> list[str]:
    try:
        return (work_dir / f"stacks.{rank}.txt").read_text(errors="replace").splitlines()
    except OSError:
        return []
