"""A real Slurm of three nodes on this machine, started by tests: slurmctld, three slurmd and munged, no accounting."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipelines.processes import descendants, identify, send

NODES = ("n1", "n2", "n3")
START_S = 60.0
_CONFIG = """
ClusterName=m4vtest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.txt
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
NodeName={nodes[2]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """Whether there is a Slurm to start here: `infra/setup/slurm.sh` installs one, and its daemons run as root."""
    return os.getuid() == 0 and all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch"))


class Cluster:
    """A running cluster; its commands work in this process and its children while it is up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def jobs(self) -> list[tuple[str, str, str]]:
        """(id, name, state) of every job there ever was."""
        lines = self.call("squeue", "-h", "-t", "all", "-o", "%i|%j|%T").split()
        found = [tuple(line.split("|")) for line in lines]
        return [(job[0], job[1], job[2]) for job in found]

    def live(self) -> list[str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        return [job_id for job_id, _, state in self.jobs() if state not in ended]

    def lose(self, node: str) -> None:
        """The node is gone: its slurmd with everything below it, and Slurm is told so."""
        pid = int((self.folder / f"slurmd-{node}.pid").read_text())
        own = identify(pid)
        for process in [*([own] if own else []), *descendants(pid), *_steps(node)]:
            send(process, signal.SIGKILL)
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def restore(self, node: str) -> None:
        subprocess.run(["slurmd", "-N", node], check=True)
        self.call("scontrol", "update", f"nodename={node}", "state=idle")


def _steps(node: str) -> list:
    """slurmstepd leaves its slurmd's tree; ranks are below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_step = b"slurmstepd" in (entry / "cmdline").read_bytes().split(b"\0")[0]
            environment = (entry / "environ").read_bytes() if is_step else b""
        except OSError:
            continue
        names = [b"SLURMD_NODENAME=" + node.encode() in _environment(p.pid) for p in descendants(int(entry.name))]
        if is_step and (any(names) or f"SLURMD_NODENAME={node}".encode() in environment):
            found += descendants(int(entry.name))
            own = identify(int(entry.name))
            found += [own] if own else []
    return found


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Up within seconds; gone with every daemon and job when the context ends."""
    folder = Path(tempfile.mkdtemp(prefix="m4v-slurm-"))  # a socket's path must be short
    before = os.environ.get("SLURM_CONF")
    cluster = Cluster(folder)
    try:
        _start(folder)
        _wait_until_idle(cluster)
        yield cluster
        for job_id in cluster.live():
            cluster.call("scancel", "--signal=KILL", "--full", job_id)
            cluster.call("scancel", job_id)
    finally:
        _stop(folder)
        os.environ.pop("SLURM_CONF", None) if before is None else os.environ.update(SLURM_CONF=before)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder, host=socket.gethostname(), nodes=NODES, ports=_free_ports(4)))
    os.environ["SLURM_CONF"] = str(config)
    munge = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(munge, check=True, **quiet)
    subprocess.run(["slurmctld"], check=True, **quiet)
    for node in NODES:
        subprocess.run(["slurmd", "-N", node], check=True, **quiet)


def _wait_until_idle(cluster: Cluster) -> None:
    deadline = time.monotonic() + START_S
    while True:
        answer = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, check=False)
        if answer.stdout.split() == ["idle"] * len(NODES):
            return
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def _stop(folder: Path) -> None:
    for path in sorted(folder.glob("*.pid"), reverse=True):
        process = identify(int(path.read_text() or 0))
        if process is not None:
            for one in [*descendants(process.pid), process]:
                send(one, signal.SIGTERM if one == process else signal.SIGKILL)
            deadline = time.monotonic() + 10
            while identify(process.pid) == process and time.monotonic() < deadline:
                time.sleep(0.05)
            send(process, signal.SIGKILL)
