"""Files by which a Slurm job and whoever waits for it talk, in the attempt's directory on the shared file system."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError
from m4v.core.local_files import write_atomic

SCRIPT = "job.sh"
SPEC = "job.json"
STARTS = "starts.jsonl"
ENDED = "ended.json"
CURRENT = "current"  # beside the attempts: the one that may write; a job that comes late finds another one there
START = "start"  # the number of the start that may write; what hangs on a lost node ends itself
MASTER_ADDRESS, MASTER_PORT, START_NUMBER = "M4V_MASTER_ADDR", "M4V_MASTER_PORT", "M4V_START"


class JobSpec(FrozenModel):
    """`job.json`: what the batch step needs to know.

    `task` is put before the command on every node (a container), `srun` are further options of srun; `python` runs the
    stage, inside the container if there is one. `drain_s`: how long a drain may take.
    """

    name: str
    attempt_id: str
    stage_key: str
    ranks: int
    nodes: int
    ranks_per_node: int
    python: str
    srun: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    drain_s: int
    requeue: bool


class JobStart(FrozenModel):
    """A line of `starts.jsonl`: the job was started (`ended` empty), or that start ended: `drained`, `requeued`,
    `finished`, `lost`, `preempted`."""

    start: int
    job_id: str
    nodes: tuple[str, ...] = ()
    at: float
    ended: str = ""
    note: str = ""


class JobEnd(FrozenModel):
    """`ended.json`, the job's last word.

    - returncode: srun's. exit_class: set where no rank could say why.
    - nodes: those it ran on, in the order of their ranks; `lost` among them, `failed` the one where the gang broke.
    - preempted: it saved its state since its place was taken away, and was not queued again.
    """

    returncode: int = 0
    exit_class: int | None = None
    message: str = ""
    nodes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    preempted: bool = False


def read_spec(work_dir: Path) -> JobSpec:
    """Raises ConfigError when it is missing or does not follow the schema."""
    try:
        return JobSpec.model_validate_json((work_dir / SPEC).read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError("job cannot be read", value=str(work_dir / SPEC), where=type(error).__name__) from None


def read_end(work_dir: Path) -> JobEnd | None:
    try:
        return JobEnd.model_validate_json((work_dir / ENDED).read_bytes())
    except (OSError, ValidationError):
        return None


def write_end(work_dir: Path, end: JobEnd) -> None:
    write_atomic(work_dir / ENDED, json.dumps(end.canonical()).encode())


def is_open(work_dir: Path) -> bool:
    """Whether a job of this attempt may still run, though nobody waits for it."""
    return (work_dir / SPEC).exists() and read_end(work_dir) is None


def read_starts(work_dir: Path) -> list[JobStart]:
    """Oldest first; a line that was cut off by a lost node is left out."""
    try:
        lines = (work_dir / STARTS).read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(JobStart.model_validate_json(line))
        except ValidationError:
            continue
    return found


def append_start(work_dir: Path, start: JobStart) -> None:
    """One write of one line, after whatever a lost node left unfinished."""
    path = work_dir / STARTS
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("ab") as stream:
        stream.write((b"\n" if cut else b"") + json.dumps(start.canonical()).encode() + b"\n")
