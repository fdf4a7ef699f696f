"""What srun starts once on every node: the supervisor, and below it torchrun or the one rank.

srun … python -m pipelines.launchers.slurm_node WORK_DIR
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from m4v.core.errors import ConfigError
from pipelines.launchers.base import REQUEST
from pipelines.launchers.slurm_files import (
    CURRENT,
    MASTER_ADDRESS,
    MASTER_PORT,
    START,
    START_NUMBER,
    JobSpec,
    read_spec,
)


def command(spec: JobSpec, work_dir: Path, environment: Mapping[str, str]) -> list[str]:
    """The node's command; raises ConfigError outside a Slurm step."""
    try:
        node, start = environment["SLURM_NODEID"], environment[START_NUMBER]
        address, port = environment[MASTER_ADDRESS], environment[MASTER_PORT]
    except KeyError as missing:
        raise ConfigError("this runs inside a job's step only", value=missing.args[0], where="slurm_node") from None
    pids = work_dir / "nodes" / node
    pids.mkdir(parents=True, exist_ok=True)
    supervisor = [spec.python, "-m", "pipelines.supervise", "--grace", str(spec.drain_s), "--work-dir", str(work_dir)]
    supervisor += ["--pids", str(pids), "--fence", f"{work_dir.parent / CURRENT}={spec.attempt_id}"]
    supervisor += ["--fence", f"{work_dir / START}={start}", "--"]
    stage = ["-m", "pipelines.stage_process", str(work_dir / REQUEST)]
    if spec.ranks == 1:
        return [*supervisor, spec.python, *stage]
    # A static rendezvous: Slurm has said who takes part, and where the first node is.
    torchrun = [spec.python, "-m", "torch.distributed.run", "--nnodes", str(spec.nodes), "--node-rank", node]
    torchrun += ["--nproc-per-node", str(spec.ranks_per_node), "--max-restarts", "0"]
    torchrun += ["--master-addr", address, "--master-port", port]
    return [*supervisor, *torchrun, *stage]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m pipelines.launchers.slurm_node WORK_DIR\n")
        return 2
    work_dir = Path(arguments[0])
    words = command(read_spec(work_dir), work_dir, os.environ)
    sys.stdout.flush()
    os.execv(words[0], words) if "/" in words[0] else os.execvp(words[0], words)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
