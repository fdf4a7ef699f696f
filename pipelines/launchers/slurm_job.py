"""The batch step of a Slurm job: starts the gang, drains it when its place is taken away, queues the job again.

    python -m pipelines.launchers.slurm_job WORK_DIR

It needs nobody who waits: killed, drained or out of time, the job's files say what became of each start.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from m4v.core.errors import ExitClass, M4VError
from m4v.core.local_files import write_atomic
from m4v.core.stage import RESULT, ExitRecord, read_exits
from pipelines.launchers.base import DRAIN, DRAIN_ASKED, STACKS
from pipelines.launchers.slurm_client import SlurmClient
from pipelines.launchers.slurm_files import (
    CURRENT,
    ENDED,
    MASTER_ADDRESS,
    MASTER_PORT,
    START,
    START_NUMBER,
    JobEnd,
    JobStart,
    append_start,
    read_spec,
    read_starts,
    write_end,
)
from pipelines.supervise import ENDED as NODE_ENDED

TICK_S = 1.0
PEERS_S = 10.0  # for the ranks of other nodes to notice, and to say so, when a node's have failed
REQUEUE_WAIT_S = 300.0  # Slurm ends this process when it queues the job again
PORTS = range(15000, 30000)  # below those that the kernel gives out


class BatchStep:
    """One start of a job."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir, self._spec, self._client = work_dir, read_spec(work_dir), SlurmClient()
        self._job_id = os.environ["SLURM_JOB_ID"]
        self._number = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._nodes = tuple(self._client.hostnames(os.environ.get("SLURM_JOB_NODELIST", "")))
        self._terminated = False

    def run(self) -> int:
        if not self._is_current():
            print(f"attempt {self._spec.attempt_id} has been given up meanwhile: nothing is started")
            return 0
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        if self._lost_before():
            return 1
        self._clean()
        if (self._work_dir / DRAIN_ASKED).exists():
            write_end(self._work_dir, JobEnd(exit_class=ExitClass.DRAINED, message="drained before it started"))
            return 0
        self._note()
        returncode = self._run_gang()
        if self._is_drained() and self._queue_again():
            return 0
        self._note("finished")
        preempted = self._is_drained() and self._still_ours()
        failed = self._failed_nodes()[:1] if returncode and self._spec.nodes > 1 else ()
        end = JobEnd(returncode=returncode, nodes=self._nodes, preempted=preempted, failed=failed)
        write_end(self._work_dir, end)
        return returncode

    def _is_current(self) -> bool:
        try:
            return (self._work_dir.parent / CURRENT).read_text().strip() == self._spec.attempt_id
        except OSError:
            return False

    def _on_term(self, *_: object) -> None:
        self._terminated = True

    def _note(self, ended: str = "", note: str = "", start: int | None = None) -> None:
        number = self._number if start is None else start
        line = JobStart(
            start=number, job_id=self._job_id, nodes=self._nodes, at=time.time(), ended=ended, note=note
        )  # fmt: skip
        append_start(self._work_dir, line)

    def _lost_before(self) -> bool:
        """Whether the start before this one was lost with a node; one that was merely preempted is gone on from."""
        starts = read_starts(self._work_dir)
        if not starts or starts[-1].ended:
            return False
        before = starts[-1]
        down = self._client.down(before.nodes)
        if not down:
            self._note("preempted", "ended without a word; its nodes are well", before.start)
            return False
        message = f"node {', '.join(down)} was lost"
        self._note("lost", message, before.start)
        write_end(
            self._work_dir,
            JobEnd(exit_class=ExitClass.INFRASTRUCTURE, message=message, nodes=before.nodes, lost=tuple(down)),
        )
        return True

    def _clean(self) -> None:
        """What an earlier start left: its words, its staging, and a drain that nobody asked for."""
        for record in (*self._work_dir.glob("exit.*.json"), *self._work_dir.glob("heartbeat.*.json")):
            record.unlink()
        for name in ("staging", "nodes"):
            shutil.rmtree(self._work_dir / name, ignore_errors=True)
        asked = (self._work_dir / DRAIN_ASKED).exists()
        for name in (RESULT, ENDED, "progress.json", STACKS, *(() if asked else (DRAIN,))):
            (self._work_dir / name).unlink(missing_ok=True)
        write_atomic(self._work_dir / START, str(self._number).encode())

    def _run_gang(self) -> int:
        child = subprocess.Popen(self._srun(), stdin=subprocess.DEVNULL, env=self._environment())
        give_up_at: float | None = None
        while True:
            try:
                return child.wait(TICK_S)
            except subprocess.TimeoutExpired:
                self._pass_on_term()
            if give_up_at is None and (failed := self._failed_nodes()):
                print(f"the gang broke on node {failed[0]}: the others have {PEERS_S:g} s", flush=True)
                give_up_at = time.monotonic() + PEERS_S
            if give_up_at is not None and time.monotonic() >= give_up_at:
                child.terminate()

    def _pass_on_term(self) -> None:
        if self._terminated and not (self._work_dir / DRAIN).exists():
            print(f"start {self._number} is to end: saving the state", flush=True)
            write_atomic(self._work_dir / DRAIN, b"")

    def _failed_nodes(self) -> tuple[str, ...]:
        """Nodes whose command has ended badly though its ranks did not say that they drained, the first one first: the
        ranks of the others wait for theirs, with NCCL for half an hour."""
        if self._spec.nodes == 1:
            return ()
        classes = {e.rank: e.exit_class for e in read_exits(self._work_dir)}
        each, found = self._spec.ranks_per_node, []
        for number, name in enumerate(self._nodes):
            ended = self._work_dir / "nodes" / str(number) / NODE_ENDED
            ranks = range(number * each, (number + 1) * each)
            well = all(classes.get(rank) in (ExitClass.OK, ExitClass.DRAINED) for rank in ranks)
            if not well and ended.exists() and ended.read_text() != "0":
                found.append((ended.stat().st_mtime, name))
        return tuple(name for _, name in sorted(found))

    def _srun(self) -> list[str]:
        spec = self._spec
        # A node that is done first must not take the others away from their saving.
        srun = ["srun", f"--nodes={spec.nodes}", f"--ntasks={spec.nodes}", "--ntasks-per-node=1"]
        srun += [f"--wait={spec.drain_s}", *spec.srun, *spec.task]
        return [*srun, spec.python, "-m", "pipelines.launchers.slurm_node", str(self._work_dir)]

    def _environment(self) -> dict[str, str]:
        address = self._client.address(self._nodes[0]) if self._spec.nodes > 1 else "127.0.0.1"
        port = PORTS[(int(self._job_id) * 7 + self._number) % len(PORTS)]
        own = {MASTER_ADDRESS: address, MASTER_PORT: str(port), START_NUMBER: str(self._number)}
        return {**os.environ, **own}

    # The end of a start

    def _is_drained(self) -> bool:
        """Whether the gang saved its state though nobody asked for it."""
        exits: list[ExitRecord] = read_exits(self._work_dir)
        drained = bool(exits) and all(e.exit_class == ExitClass.DRAINED for e in exits)
        return drained and len(exits) == self._spec.ranks and not (self._work_dir / DRAIN_ASKED).exists()

    def _still_ours(self) -> bool:
        """False for a job that somebody has cancelled."""
        try:
            state = self._client.state(self._job_id)
        except M4VError:
            return True
        return state is None or state.state == "RUNNING"

    def _queue_again(self) -> bool:
        """Does not return when Slurm takes the job back: it ends this process."""
        if not self._spec.requeue or not self._still_ours():
            return False
        self._note("requeued", "drained: the time was up, or the nodes were wanted")
        try:
            self._client.requeue(self._job_id)
        except M4VError as error:
            print(f"the job could not be queued again: {error.message}", flush=True)
            return False
        time.sleep(REQUEUE_WAIT_S)
        return True


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m pipelines.launchers.slurm_job WORK_DIR\n")
        return 2
    work_dir = Path(arguments[0])
    try:
        return BatchStep(work_dir).run()
    except M4VError as error:
        sys.stderr.write(f"{error}\n")
        write_end(work_dir, JobEnd(exit_class=error.exit_class, message=error.message))
        return int(error.exit_class)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
