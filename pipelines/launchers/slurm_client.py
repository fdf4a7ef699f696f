"""Slurm's commands and what they answer; squeue is always there, sacct only where a site keeps accounts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m4v.core.errors import ConfigError, InfrastructureError

COMMAND_S = 60.0
_FORMAT = "%i|%T|%r|%N"
_TRANSIENT = (
    "Unable to contact slurm controller", "Socket timed out", "Connection refused", "Transport endpoint", "Zero Bytes",
    "backup controller", "temporarily", "Resource temporarily unavailable", "Communication connection failure",
    "Unexpected message received", "Protocol authentication error",
)  # fmt: skip
_NO_CLUSTER = "Could not establish a configuration source"
_UNKNOWN_JOB = ("Invalid job id specified", "Invalid job id")
# COMPLETING and STAGE_OUT still hold nodes or processes: a job is gone only after them.
LIVE_STATES = frozenset(
    {
        "PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "STAGE_OUT", "RESIZING", "REQUEUED",
        "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "SPECIAL_EXIT", "STOPPED", "RESV_DEL_HOLD",
    }
)  # fmt: skip
DOWN_STATES = ("down", "fail", "drain", "unk", "boot", "power", "inval", "no_respond", "future")


@dataclass(frozen=True)
class JobState:
    """One line about a job. `nodes` as Slurm writes them, e.g. `n[1-3]`."""

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES


def parse_states(text: str) -> list[JobState]:
    """Lines `id|state|reason|nodes` of squeue or sacct; raises InfrastructureError for anything else."""
    found = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        fields = line.split("|")
        if len(fields) != 4 or not re.fullmatch(r"\d+([_+.].*)?", fields[0]):
            raise InfrastructureError("Slurm answered something unknown", value=line[:200], where="squeue")
        job_id, state, reason, nodes = fields
        state = state.split()[0].rstrip("+") if state else ""  # sacct: `CANCELLED by 1000`
        found.append(JobState(job_id, state, _said(reason), _said(nodes)))
    return found


def _said(text: str) -> str:
    return "" if text in ("None", "(null)", "n/a", "None assigned", "Unknown") else text


def parse_fields(text: str) -> dict[str, str]:
    """`Key=Value` words of one `scontrol show … -o` line; a value ends where the next key begins."""
    found = re.findall(r"(\S+?)=(.*?)(?=\s+[A-Za-z][\w:/.*-]*=|\s*$)", text.strip())
    return {key: _said(value.strip()) for key, value in found}


class SlurmClient:
    """Runs the commands; every call may raise InfrastructureError when the controller does not answer."""

    def submit(self, script: Path) -> str:
        """The id of a new job; raises ConfigError for what Slurm refuses for good."""
        answer = self._call(["sbatch", "--parsable", str(script)])
        job_id = answer.strip().split(";")[0]
        if not job_id.isdigit():
            raise InfrastructureError("sbatch answered no job id", value=answer[:200], where="sbatch")
        return job_id

    def named(self, name: str) -> list[JobState]:
        """This user's jobs of a name that Slurm still knows, newest first."""
        found = parse_states(self._call(["squeue", "-h", "-t", "all", "--me", "-o", _FORMAT, "-n", name]))
        return sorted(found, key=lambda job: int(re.split(r"\D", job.job_id)[0]), reverse=True)

    def live(self) -> list[tuple[str, JobState]]:
        """Name and state of every job of this user that runs or waits."""
        lines = self._call(["squeue", "-h", "-t", "all", "--me", "-o", f"%j|{_FORMAT}"]).splitlines()
        named = [line.strip().partition("|") for line in lines if line.strip()]
        found = [(name, state) for name, _, rest in named for state in parse_states(rest)]
        return [(name, state) for name, state in found if state.is_live]

    def state(self, job_id: str) -> JobState | None:
        """What Slurm says of a job; None once it has forgotten it and keeps no accounts."""
        try:
            found = parse_states(self._call(["squeue", "-h", "-t", "all", "-o", _FORMAT, "-j", job_id]))
        except _UnknownJob:
            found = []
        return found[0] if found else self._accounted(job_id)

    def _accounted(self, job_id: str) -> JobState | None:
        command = ["sacct", "-n", "-P", "-X", "-j", job_id, "-o", "JobIDRaw,State,Reason,NodeList"]
        try:
            found = parse_states(self._call(command))
        except (ConfigError, InfrastructureError):
            return None  # no accounts are kept here: the job's own files tell
        return found[-1] if found else None

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job; one that is gone already is no error."""
        try:
            self._call(["scancel", job_id])
        except _UnknownJob:
            return

    def requeue(self, job_id: str) -> None:
        self._call(["scontrol", "requeue", job_id])

    def start_now(self, job_id: str) -> None:
        """Lift the two minutes that Slurm lets a job wait after it was queued again."""
        self._call(["scontrol", "update", f"JobId={job_id}", "StartTime=now"])

    def hostnames(self, nodes: str) -> list[str]:
        """`n[1-3]` -> n1, n2, n3."""
        return self._call(["scontrol", "show", "hostnames", nodes]).split() if nodes else []

    def address(self, node: str) -> str:
        """The address by which other nodes reach one."""
        fields = parse_fields(self._call(["scontrol", "show", "node", "-o", node]))
        return fields.get("NodeAddr") or node

    def down(self, nodes: Sequence[str]) -> list[str]:
        """Those of `nodes` that Slurm holds for broken or taken out of use."""
        if not nodes:
            return []
        answer = self._call(["sinfo", "-h", "-N", "-o", "%N|%T", "-n", ",".join(nodes)])
        states = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
        return [n for n in nodes if _is_down(states.get(n, "down"))]

    def _call(self, command: list[str]) -> str:
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_S, check=False, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise ConfigError(
                "Slurm's commands are not on this machine", value=command[0], where="launcher profile",
                next_step="run on a machine that submits to the cluster, or use another profile",
            ) from None  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InfrastructureError("Slurm does not answer", value=f"{COMMAND_S:g} s", where=command[0]) from None
        if answer.returncode == 0:
            return answer.stdout
        if _NO_CLUSTER in answer.stderr:
            raise ConfigError(
                "Slurm's commands on this machine know no cluster", value=command[0], where="launcher profile",
                next_step="set SLURM_CONF, or run on a machine that submits to the cluster",
            )  # fmt: skip
        said = " ".join(line.partition("error: ")[2] or line for line in answer.stderr.split("\n") if line.strip())
        if any(sign in said for sign in _UNKNOWN_JOB):
            raise _UnknownJob(said, where=command[0])
        if command[0] != "sbatch" or any(sign in said for sign in _TRANSIENT):
            raise InfrastructureError(f"Slurm failed: {said}", value=" ".join(command)[:200], where=command[0])
        raise ConfigError(f"Slurm refuses the job: {said}", where="launcher profile: slurm", next_step="sinfo")


class _UnknownJob(InfrastructureError):
    """Slurm has forgotten the job, or never had it."""


def _is_down(state: str) -> bool:
    # A trailing `*` says that the node does not answer.
    return state.endswith("*") or any(word in state.lower() for word in DOWN_STATES)
