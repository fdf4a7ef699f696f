"""Runs stages on this machine: supervisor, then the stage process, then, for several ranks, torchrun.

A local job lives and dies with the process that submitted it; what a killed one left is removed before the
next attempt of the same stage key starts.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from m4v.core.errors import ExitClass, InfrastructureError
from m4v.core.stage import Resources, StageRequest, read_exits
from m4v.core.storage import write_atomic
from pipelines.environment import Target, local_target
from pipelines.launchers.base import DRAIN, LOG, REQUEST, STACKS, Ending, Job, NodePolicy, ask_to_drain, job_name
from pipelines.launchers.endings import ending_of
from pipelines.launchers.environment import stage_environment
from pipelines.processes import kill_leftovers
from pipelines.supervise import GRACE_S
from training.heartbeat import HangLimits

CANCEL_S = 15.0
_FIRST_PORT = 20_000
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class LocalLauncher:
    """`lock_file` names this machine's lock file; `environment` is added to every stage's."""

    name, outlives = "local", False
    nodes: NodePolicy | None = None

    def __init__(
        self,
        lock_file: str | None = None,
        environment: Mapping[str, str] | None = None,
        grace_s: float = GRACE_S,
        hang: HangLimits = HangLimits(),  # noqa: B008 - frozen
    ) -> None:
        self.hang = hang
        self._lock_file, self._environment, self._grace_s = lock_file, dict(environment or {}), grace_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ranks: dict[str, int] = {}
        self._guard = threading.Lock()

    def target(self, resources: Resources) -> Target:
        return local_target(resources.device, self._lock_file)

    def submit(self, request: StageRequest, exclude: Sequence[str] = ()) -> Job:
        """`exclude` has no meaning: there is this machine only."""
        work_dir = Path(request.work_dir)
        name = job_name(request.stage_key, request.attempt_id)
        with self._guard:
            if name in self._children:
                return Job(name, work_dir, str(self._children[name].pid))
        # The claim on this key is ours, so whatever still runs below its folder is an orphan.
        kill_leftovers(work_dir.parent)
        child = self._spawn(request, work_dir)
        with self._guard:
            self._children[name] = child
            self._ranks[name] = request.resources.ranks
        return Job(name, work_dir, str(child.pid))

    def attach(self, name: str, work_dir: Path) -> Job | None:
        """Nothing that an earlier process started may go on."""
        return None

    def starts(self, job: Job) -> list[dict[str, object]]:
        return []

    def poll(self, job: Job, wait_s: float) -> Ending | None:
        try:
            returncode = self._children[job.name].wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        if returncode < 0:  # the supervisor itself was killed; its PDEATHSIG took the command along
            kill_leftovers(job.work_dir)
            return Ending(ExitClass.INFRASTRUCTURE, f"the supervisor was killed by signal {-returncode}")
        draining = (job.work_dir / DRAIN).exists()
        exits = read_exits(job.work_dir)
        return ending_of(exits, returncode, self._ranks[job.name], draining=draining, log=job.work_dir / LOG)

    def drain(self, job: Job) -> None:
        ask_to_drain(job.work_dir)

    def is_running(self, job: Job) -> bool:
        return True

    def dump_stacks(self, job: Job) -> None:
        write_atomic(job.work_dir / STACKS, b"")

    def leave(self, job: Job) -> None:
        self.cancel(job)

    def cancel(self, job: Job) -> None:
        child = self._children[job.name]
        child.kill()  # PDEATHSIG ends the command; what has left its tree is found by its environment
        child.wait(CANCEL_S)
        kill_leftovers(job.work_dir)

    def _spawn(self, request: StageRequest, work_dir: Path) -> subprocess.Popen[bytes]:
        supervisor = [sys.executable, "-m", "pipelines.supervise", "--grace", str(self._grace_s)]
        supervisor += ["--work-dir", str(work_dir), "--parent", str(os.getpid()), "--"]
        stage = ["-m", "pipelines.stage_process", str(work_dir / REQUEST)]
        command = [
            *supervisor,
            *(_torchrun(request.resources.ranks) if request.resources.ranks > 1 else [sys.executable]),
        ]
        # Files, never pipes: a reader that goes away must not stop a stage.
        with (work_dir / LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, *stage],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **stage_environment(request, work_dir), **self._environment},
                start_new_session=True,  # Ctrl-C belongs to the one who waits, who then asks for a drain
            )


def _torchrun(ranks: int) -> list[str]:
    """One agent on this node with a fixed gang. A static address needs no name service."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--node-rank", "0"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", "0"]
    return [*command, "--master-addr", "127.0.0.1", "--master-port", str(free_port())]


def free_port() -> int:
    """A port of this machine that nothing has now, for a process that takes seconds before it binds it.

    It lies below those that the kernel gives to whoever asks for any, so that nobody is given it meanwhile.
    """
    for _ in range(100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _FIRST_PORT + secrets.randbelow(_first_given_port() - _FIRST_PORT)))
            except OSError:
                continue  # somebody has this one
            return int(probe.getsockname()[1])
    raise InfrastructureError("no port is free", value=f"{_FIRST_PORT} to {_first_given_port() - 1}")


def _first_given_port() -> int:
    """The lowest port that the kernel gives by itself; 32768, as it comes, where that is not told or leaves no room."""
    try:
        first = int(_PORT_RANGE.read_text().split()[0])
    except OSError:
        first = 0
    return first if first > _FIRST_PORT + 1000 else 32_768
