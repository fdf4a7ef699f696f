"""The Slurm half of a launcher profile: what a job asks for, its environment on the nodes, and when it is given up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError

# One word of an #SBATCH line: nothing that a shell or sbatch would read differently.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:=+/@\[\]()&|*!-]+$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\n\"%\\]*$")]
_OWNED = (
    "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "error", "signal", "requeue", "no-requeue", "open-mode",
    "exclude", "chdir", "array", "parsable", "wrap", "wait", "hold", "test-only", "clusters", "export",
)  # fmt: skip


class ContainerConfig(FrozenModel):
    """The image that stage processes run in. The batch step itself runs on the host.

    - image: what the runtime takes: a `.sif` or `.sqsh` file, or a registry's name with its digest.
    - runtime: `apptainer` wraps the command, `pyxis` adds srun's `--container-image`.
    - mounts: `HOST:INSIDE` pairs; the home, the store and the code must be there under their own paths.
    - python: the interpreter inside.
    """

    image: Word
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    mounts: tuple[Word, ...] = ()
    python: Word = "python3"


class SlurmStage(FrozenModel):
    """What a stage asks for instead of the profile's values: an absent field stays the profile's, `null` takes it away
    (`gres: null` on nodes without a GPU)."""

    partition: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gres: Word | None = None
    ranks_per_node: int | None = Field(None, ge=1)
    cpus_per_node: int | None = Field(None, ge=1)
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?$")
    time_minutes: int | None = Field(None, ge=1)


class SlurmConfig(FrozenModel):
    """What every job of the profile asks for. Nothing here is in a stage key but `architecture` and `kernels`, through
    the numerics record.

    - partition, account, qos, reservation, constraint, gres (per node), memory (per node, as sbatch takes it): sbatch's
      options of these names. `options`: further ones, e.g. `--exclusive`, `--mail-type=FAIL`.
    - ranks_per_node: ranks of one node, one per GPU; a job of fewer ranks takes one node.
    - cpus_per_node: CPUs of each node's single task, which holds all its ranks.
    - time_minutes: the limit of one start; a job that nears it saves its state and is queued again.
    - drain_s: seconds before the limit at which the batch step gets SIGTERM; a state must be saved within them.
    - requeue: queue the same job again after such a drain. Otherwise the pipeline run submits a new one.
    - setup: a script that the batch step sources first (modules, credentials). `python`: the interpreter on the nodes,
      by default this one's path.
    - architecture, kernels: of the nodes' device as the numerics record names them (`m4v doctor` there tells both).
      Stages on a CPU are held to this machine's, without any or where it is a GPU's (`sm_90`).
    - poll_s: between two questions to Slurm; the job's own files are looked at more often.
    - exclude: nodes never used. A node that failed `exclude_after` times within `exclude_days` joins them by itself.
    - stages: other values for single stages, by the stage's name.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    constraint: Word | None = None
    gres: Word | None = None
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?$")
    options: tuple[Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z0-9-]*(=[^\s\"'\\]+)?$")], ...] = ()
    ranks_per_node: int = Field(8, ge=1)
    cpus_per_node: int | None = Field(None, ge=1)
    time_minutes: int | None = Field(None, ge=1)
    drain_s: int = Field(120, ge=10, le=3600)
    requeue: bool = True
    setup: AbsolutePath | None = None
    python: AbsolutePath | None = None
    container: ContainerConfig | None = None
    architecture: Word | None = None
    kernels: str = "torch"
    poll_s: float = Field(10.0, gt=0, le=300)
    exclude: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")], ...] = ()
    exclude_after: int = Field(2, ge=1)
    exclude_days: float = Field(7.0, gt=0)
    stages: Mapping[str, SlurmStage] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for option in self.options:
            name = re.split(r"[=]", option.removeprefix("--"))[0]
            if name in _OWNED or name in type(self).model_fields:
                raise ValueError(f"options: {option!r} is set by the launcher or has a field of its own")
        if self.time_minutes is not None and self.drain_s >= self.time_minutes * 60:
            raise ValueError(f"drain_s: {self.drain_s} s leave no time of a limit of {self.time_minutes} minutes")
        return self

    def of_stage(self, stage: str) -> SlurmConfig:
        """The values that jobs of `stage` use."""
        other = self.stages.get(stage)
        given = {} if other is None else other.model_dump(exclude_unset=True)
        if given.get("ranks_per_node", 1) is None:
            del given["ranks_per_node"]
        return self.model_copy(update=given)

    def nodes(self, ranks: int) -> tuple[int, int]:
        """(nodes, ranks on each); raises ConfigError for ranks that fill no whole number of nodes."""
        if ranks <= self.ranks_per_node:
            return 1, ranks
        if ranks % self.ranks_per_node:
            raise ConfigError(
                f"{ranks} ranks do not fill whole nodes of {self.ranks_per_node}",
                value=ranks,
                where="profile: slurm.ranks_per_node",
                next_step=f"use a multiple of {self.ranks_per_node} ranks, or other ranks_per_node",
            )
        return ranks // self.ranks_per_node, self.ranks_per_node
