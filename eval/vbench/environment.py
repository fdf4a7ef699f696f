"""Environments that VBench runs in: what each has, where it lies, and the record that tells what is installed.

The product imports nothing of VBench: an environment is an interpreter of its own, told by path. Torch-free.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from eval.vbench.child import I2V_WORKER, LONG_WORKER, V2_WORKER, WORKER, Ended, run_worker
from eval.vbench.i2v_prompts import I2V_DIMENSIONS
from eval.vbench.v2_prompts import V2_DIMENSIONS
from m4v.core.canonical import digest_bytes, digest_json
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError

EnvironmentName = Literal["core", "legacy", "long", "long-legacy", "vbench2", "i2v"]
SuiteName = Literal["vbench", "vbench-long", "vbench2", "vbench-i2v"]
RECORD = "m4v-environment.json"
_DIGEST = "installed_digest"  # stands beside the record's fields
VARIABLE = "M4V_VBENCH"
PROBE_LIMIT_S = 900.0  # the first import of a cold disk reads a gigabyte
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2@02b5c4e2"


@dataclass(frozen=True)
class EnvironmentSpec:
    """An interpreter for some dimensions of a suite.

    - pythons: versions of Python that the pins have wheels for, first and last.
    - extra: (package, where from) that no registry has; built against the torch of the environment.
    - checkouts: (folder, repository and commit, folder in it that is put on the path) of code that no package holds.
    - torch: its version, where the pins are for one alone. elsewhere: dimensions that need what neither a registry nor
      a checkout gives; they may lack here, and the image has them.
    - base: the environment whose pins it has, too. workers: our own programs that run in it, the last is started.
    """

    name: EnvironmentName
    dimensions: tuple[str, ...]
    pythons: tuple[tuple[int, int], tuple[int, int]]
    extra: tuple[tuple[str, str], ...] = ()
    checkouts: tuple[tuple[str, str, str], ...] = ()
    torch: str | None = None
    elsewhere: tuple[str, ...] = ()
    suite: SuiteName = "vbench"
    base: EnvironmentName | None = None

    @property
    def lock(self) -> bytes:
        """The requirement file, all pins but torch's and torchvision's."""
        own = (resources.files("eval.vbench.requirements") / f"{self.name}.txt").read_bytes()
        return own if self.base is None else SPECS[self.base].lock + own

    @property
    def workers(self) -> tuple[Path, ...]:
        own = {
            "vbench": (),
            "vbench-long": (LONG_WORKER,),
            "vbench2": (V2_WORKER,),
            "vbench-i2v": (LONG_WORKER, I2V_WORKER),
        }
        return (WORKER, *own[self.suite])


_MODERN = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "appearance_style", "temporal_style", "overall_consistency",
)  # fmt: skip
_OLD = ("object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene")
_DETECTORS = (("detectron2", DETECTRON2),)
# The wheel of VBench-2.0 lacks every program below third_party; upstream's own file of requirements names the others.
_VBENCH2_CODE = (
    ("vbench", "https://github.com/Vchitect/VBench@45e79ec14e69a2187202c675d2dbce1a71843d53", "VBench-2.0"),
    ("llava", "https://github.com/LLaVA-VL/LLaVA-NeXT@79ef45a6d8b89b92d7a8525f077c3a3a9894a87d", ""),
    ("yolo_world", "https://github.com/AILab-CVC/YOLO-World@4826695a84ce370dad7fe4cb555a6c7162f3751d", ""),
)
SPECS: Mapping[EnvironmentName, EnvironmentSpec] = {
    "core": EnvironmentSpec("core", _MODERN, ((3, 11), (3, 12))),
    "legacy": EnvironmentSpec("legacy", _OLD, ((3, 11), (3, 11)), _DETECTORS),
    "long": EnvironmentSpec("long", _MODERN, ((3, 11), (3, 12)), suite="vbench-long", base="core"),
    "long-legacy": EnvironmentSpec(
        "long-legacy", _OLD, ((3, 11), (3, 11)), _DETECTORS, suite="vbench-long", base="legacy"
    ),
    "vbench2": EnvironmentSpec(
        "vbench2",
        V2_DIMENSIONS,
        ((3, 10), (3, 10)),
        (("flash-attn", "flash-attn==2.7.2.post1"),),
        _VBENCH2_CODE,
        torch="2.5.1",
        elsewhere=("human_anatomy", "instance_preservation"),
        suite="vbench2",
    ),
    "i2v": EnvironmentSpec("i2v", I2V_DIMENSIONS, ((3, 11), (3, 12)), suite="vbench-i2v", base="long"),
}


def specs_of(suite: SuiteName) -> dict[EnvironmentName, EnvironmentSpec]:
    """The environments of a suite, which share its dimensions between them."""
    return {name: spec for name, spec in SPECS.items() if spec.suite == suite}


def environment_of(dimension: str, suite: SuiteName = "vbench") -> EnvironmentName:
    return next(name for name, spec in specs_of(suite).items() if dimension in spec.dimensions)


class EnvironmentRecord(FrozenModel):
    """`m4v-environment.json`. `dimensions`: why one does not import, None where it does. `operator_schemas`:
    torchvision's operators are names alone (a CPU beside a torchvision for GPUs), so that no detector runs.
    `lock`: sha256 of the requirement file it was made from, None for an interpreter that we did not make."""

    schema_version: int = 1
    name: EnvironmentName
    python: str
    packages: dict[str, str]
    dimensions: dict[str, str | None]
    operator_schemas: bool = False
    lock: str | None = None

    @property
    def installed_digest(self) -> str:
        """Identity of what is installed."""
        return digest_json([self.python, self.packages])


def environments_root() -> Path:
    """`M4V_VBENCH`, else `~/.cache/m4v/vbench`."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "m4v" / "vbench").expanduser()


def default_python(name: EnvironmentName) -> Path:
    """The interpreter that `m4v evaluate setup` makes when it is told no other place."""
    return environments_root() / name / "bin" / "python"


def read_record(folder: Path) -> EnvironmentRecord | None:
    """The record of an environment that was set up there; None without one; raises ConfigError for a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_bytes())
        told = data.pop(_DIGEST)
        record = EnvironmentRecord.model_validate(data)
        if told != record.installed_digest:
            raise ValueError("its digest is of other packages")
    except (ValueError, KeyError, AttributeError) as error:
        words = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"the environment's record does not parse: {words}", value=str(path),
            next_step="remove the environment and set it up again: m4v evaluate setup NAME",
        ) from None  # fmt: skip
    return record


def find_record(name: EnvironmentName, python: Path) -> EnvironmentRecord | None:
    """What the interpreter has: from its record, or by asking it (a training image has none). None when it is not
    there; raises ConfigError when it does not answer."""
    if not python.is_file():
        return None
    found = read_record(python.parent.parent)
    return found if found is not None and found.name == name else _asked(name, python)


@cache
def _asked(name: EnvironmentName, python: Path) -> EnvironmentRecord:
    return ask(name, python)


def ask(name: EnvironmentName, python: Path, *, lock: bytes | None = None) -> EnvironmentRecord:
    """Ask an interpreter what is installed and which dimensions of `name` import; raises ConfigError when it cannot
    say."""
    with tempfile.TemporaryDirectory(prefix="m4v-vbench-") as folder:
        _lay_vocabulary(python, Path(folder))
        request = {"task": "environment", "device": "cpu", "dimensions": list(SPECS[name].dimensions)}
        variables = {"VBENCH_CACHE_DIR": folder, "VBENCH2_CACHE_DIR": folder}
        ended = run_worker(python, request, Path(folder), variables, PROBE_LIMIT_S, worker=SPECS[name].workers[-1])
    if ended.answer is None or ended.answer.get("status") != "ok":
        raise ConfigError(
            f"the interpreter of the {name} environment does not answer: {ended.reason}", value=str(python),
            next_step=f"m4v evaluate setup {name}",
        )  # fmt: skip
    answer = ended.answer
    return EnvironmentRecord(
        name=name, python=answer["python"], packages=answer["packages"], dimensions=answer["dimensions"],
        operator_schemas=answer["operator_schemas"], lock=None if lock is None else digest_bytes(lock),
    )  # fmt: skip


def vocabulary_of(python: Path) -> Path | None:
    """The word list of OpenAI's CLIP package in an environment: two dimensions look for a copy of it as they are
    imported."""
    found = sorted(python.parent.parent.glob(f"lib/python3.*/site-packages/clip/{VOCABULARY}"))
    return found[0] if found else None


def _lay_vocabulary(python: Path, folder: Path) -> None:
    source = vocabulary_of(python)
    if source is not None:
        (folder / "ViCLIP").mkdir()
        (folder / "ViCLIP" / VOCABULARY).symlink_to(source)


def problem_of(record: EnvironmentRecord | None, name: EnvironmentName, dimension: str, python: Path) -> str | None:
    """Why the environment cannot measure the dimension; None when it can."""
    if record is None:
        return f"there is no {name} environment at {python}"
    if dimension not in record.dimensions:
        return f"the {name} environment was not made for it"
    return record.dimensions[dimension]


def missing_dimensions(record: EnvironmentRecord, dimensions: Sequence[str]) -> dict[str, str]:
    """Those that do not import, and why."""
    return {d: reason for d in dimensions if (reason := record.dimensions.get(d, "was not looked at"))}


def record_json(record: EnvironmentRecord) -> bytes:
    return (
        json.dumps(
            {**record.canonical(), "installed_digest": record.installed_digest}, indent=1, sort_keys=True
        ).encode()
        + b"\n"
    )


__all__ = [
    "SPECS", "Ended", "EnvironmentName", "EnvironmentRecord", "EnvironmentSpec", "SuiteName", "ask", "default_python",
    "environment_of", "environments_root", "find_record", "missing_dimensions", "problem_of", "read_record",
    "record_json", "specs_of", "vocabulary_of",
]  # fmt: skip
