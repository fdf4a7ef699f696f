"""Renders what sbatch takes: the one template there is, filled from the profile and the request."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from m4v.core.errors import ConfigError
from m4v.core.stage import StageRequest
from pipelines.launchers.base import LOG, job_name
from pipelines.launchers.environment import stage_environment
from pipelines.launchers.slurm_config import ContainerConfig, SlurmConfig
from pipelines.launchers.slurm_files import JobSpec

_UNFIT = frozenset('\n"%\\')


def job_spec(request: StageRequest, config: SlurmConfig) -> JobSpec:
    """Raises ConfigError for ranks that fill no whole number of nodes."""
    nodes, each = config.nodes(request.resources.ranks)
    host_python = config.python or sys.executable
    srun, task = _container(config.container)
    if config.cpus_per_node is not None:  # srun no longer takes this one from the job
        srun = (f"--cpus-per-task={config.cpus_per_node}", *srun)
    return JobSpec(
        name=job_name(request.stage_key, request.attempt_id),
        attempt_id=request.attempt_id,
        stage_key=request.stage_key,
        ranks=request.resources.ranks,
        nodes=nodes,
        ranks_per_node=each,
        python=config.container.python if config.container is not None else host_python,
        srun=srun,
        task=task,
        drain_s=config.drain_s,
        requeue=config.requeue,
    )


def _container(container: ContainerConfig | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(options of srun, words before the command)."""
    if container is None:
        return (), ()
    if container.runtime == "pyxis":
        mounts = (f"--container-mounts={','.join(container.mounts)}",) if container.mounts else ()
        return (f"--container-image={container.image}", *mounts), ()
    binds = tuple(word for mount in container.mounts for word in ("--bind", mount))
    return (), ("apptainer", "exec", "--nv", *binds, container.image)


def render(request: StageRequest, config: SlurmConfig, exclude: Sequence[str] = ()) -> str:
    """The batch script. Raises ConfigError for a work directory whose path an #SBATCH line cannot hold."""
    work_dir = Path(request.work_dir)
    if _UNFIT & set(str(work_dir)):
        raise ConfigError("sbatch cannot take this path", value=str(work_dir), where="M4V_HOME")
    spec = job_spec(request, config)
    options = _options(spec, config, sorted({*config.exclude, *exclude}))
    options += [f'--chdir="{work_dir}"', f'--output="{work_dir / LOG}"']
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "set -eo pipefail"]
    if config.setup is not None:
        lines.append(f"source {shlex.quote(config.setup)}")
    for name, value in stage_environment(request, work_dir).items():
        lines.append(f"export {name}={shlex.quote(value)}")
    python = shlex.quote(config.python or sys.executable)
    # `exec`: the batch step's own process gets the signal before the limit.
    lines.append(f"exec {python} -m pipelines.launchers.slurm_job {shlex.quote(str(work_dir))}")
    return "\n".join(lines) + "\n"


def _options(spec: JobSpec, config: SlurmConfig, exclude: Sequence[str]) -> list[str]:
    given = {
        "partition": config.partition, "account": config.account, "qos": config.qos, "mem": config.memory,
        "reservation": config.reservation, "constraint": config.constraint, "gres": config.gres,
        "cpus-per-task": config.cpus_per_node, "time": config.time_minutes, "exclude": ",".join(exclude) or None,
    }  # fmt: skip
    fixed = [f"--job-name={spec.name}", f"--nodes={spec.nodes}", "--ntasks-per-node=1", "--open-mode=append"]
    fixed += [f"--signal=B:TERM@{spec.drain_s}", "--requeue" if spec.requeue else "--no-requeue"]
    # One in quotes: `a&b` is a constraint, and sbatch splits at blanks only.
    return [*fixed, *(f'--{name}="{value}"' for name, value in given.items() if value is not None), *config.options]
