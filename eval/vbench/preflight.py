"""What VBench needs on this machine before the first video is sampled, and what of it is there. Torch-free.

JSON: dimensions [{dimension, environment, available, reasons}], requirements [name, kind, dimensions, place, present,
problem, size_bytes, approx_bytes (of what is not there), sha256 (where bytes were read), source, variable, next_step].
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.suites import Requirement
from eval.vbench.config import TITLES, Places, Variant, VBenchConfig
from eval.vbench.environment import SPECS, EnvironmentName, SuiteName, environment_of, find_record, specs_of
from eval.vbench.weights import digest_of, find, needs, requirements
from m4v.core.canonical import digest_file, digest_json
from m4v.core.config import FrozenModel
from m4v.core.errors import ConfigError, InputError

_WHOLE = Variant()
GPU_ALONE = "runs on a GPU alone"


class DimensionCheck(FrozenModel):
    """One dimension: whether it can be measured here, and every reason why not."""

    dimension: str
    environment: EnvironmentName
    available: bool
    reasons: tuple[str, ...]


class Preflight(FrozenModel):
    """The whole look: of dimensions and of what they need."""

    dimensions: tuple[DimensionCheck, ...]
    requirements: tuple[Requirement, ...]

    @property
    def available(self) -> tuple[str, ...]:
        return tuple(d.dimension for d in self.dimensions if d.available)

    @property
    def refused(self) -> dict[str, tuple[str, ...]]:
        """Dimensions that cannot be measured here, with every reason."""
        return {d.dimension: d.reasons for d in self.dimensions if not d.available}


def preflight(config: VBenchConfig, places: Places, *, hashing: bool = False, device: str | None = None) -> Preflight:
    """Look at environments and files; `hashing` reads every byte of them. Changes nothing.

    `device`: where it shall run (`cpu` refuses dimensions that run on a GPU alone); None where nobody knows yet."""
    wanted = config.wanted
    needed = _environments(wanted, places, config.suite)
    needed += requirements(wanted, places, hashing=hashing, published=config.published_weights, variant=config.variant)
    bare = config.gpu_only if device == "cpu" else ()
    return Preflight(
        dimensions=tuple(_check(d, needed, config.suite, bare) for d in wanted), requirements=tuple(needed)
    )


def _check(dimension: str, needed: Sequence[Requirement], suite: SuiteName, bare: Sequence[str]) -> DimensionCheck:
    reasons = ((GPU_ALONE,) if dimension in bare else ()) + tuple(
        f"{r.name} {r.problem} ({r.place})" for r in needed if r.problem and dimension in r.dimensions
    )
    return DimensionCheck(
        dimension=dimension, environment=environment_of(dimension, suite), available=not reasons, reasons=reasons
    )


def _environments(wanted: Sequence[str], places: Places, suite: SuiteName) -> list[Requirement]:
    found = []
    for name, spec in specs_of(suite).items():
        if mine := tuple(d for d in spec.dimensions if d in wanted):
            found += _environment(name, mine, places.python(name))
    return found


def _environment(name: EnvironmentName, dimensions: tuple[str, ...], python: Path) -> list[Requirement]:
    """A row of the interpreter, and one of each dimension that it cannot import."""
    first, last = SPECS[name].pythons
    ours = first <= sys.version_info[:2] <= last
    step = f"m4v evaluate setup {name}" + ("" if ours else f" --python python{last[0]}.{last[1]}")
    facts = {"kind": "environment", "place": str(python), "source": "pip", "variable": "M4V_VBENCH"}
    try:
        record = find_record(name, python)
    except ConfigError as error:
        problem = {"present": True, "problem": error.what, "next_step": step}
        return [Requirement.model_validate({"name": name, "dimensions": dimensions, **facts, **problem})]
    if record is None:
        problem = {"present": False, "problem": "environment is not there", "next_step": step}
        return [Requirement.model_validate({"name": name, "dimensions": dimensions, **facts, **problem})]
    rows = [Requirement.model_validate({"name": name, "dimensions": dimensions, **facts, "present": True,
                                        "sha256": record.installed_digest})]  # fmt: skip
    for dimension in dimensions:
        why = record.dimensions.get(dimension, "was not looked at")
        if why is not None:
            problem = {"present": True, "problem": f"environment cannot import it: {why}", "next_step": step}
            rows.append(Requirement.model_validate({"name": name, "dimensions": (dimension,), **facts, **problem}))
    return rows


def chosen(config: VBenchConfig, found: Preflight) -> tuple[str, ...]:
    """The dimensions to measure. Raises InputError with the exact list where one that was asked for cannot be, and
    where none of `available` can."""
    if config.dimensions == "available" and found.available:
        return found.available
    if not found.refused:
        return found.available
    missing = [r for r in found.requirements if r.problem]
    listed = [f"{r.name} {r.problem} ({r.place})" for r in missing]
    if bare := [d for d, reasons in found.refused.items() if GPU_ALONE in reasons]:
        where = "--device cuda, in a recipe profiles.NAME.stages.vbench.device"
        listed.append(f"{', '.join(bare)}: {GPU_ALONE} ({where})")
    raise InputError(
        f"{TITLES[config.suite]} cannot measure {len(found.refused)} of {len(found.dimensions)} dimensions here "
        f"({', '.join(found.refused)}): {'; '.join(listed)}",
        next_step="m4v evaluate run --check says what to put where; or take dimensions: available",
    )


def probe(config: VBenchConfig, locations: Mapping[str, str]) -> str:
    """Digest of what will measure (StageSpec.probe): dimensions, what is installed, sampled bytes of the weights.

    Raises InputError naming what is not there: no fallback stands in for a dimension.
    """
    places = Places.of(locations)
    dimensions = chosen(config, preflight(config, places))
    sampled = weights(dimensions, places, "sampled", variant=config.variant)
    return digest_json([list(dimensions), environments(dimensions, places, config.suite), sampled])


def environments(dimensions: Sequence[str], places: Places, suite: SuiteName = "vbench") -> dict[str, str]:
    """Digest of what is installed, by environment, and of our own workers."""
    names = dict.fromkeys(environment_of(d, suite) for d in dimensions)
    found = {path.stem: digest_file(path) for name in names for path in SPECS[name].workers}
    for name in names:
        if (record := find_record(name, places.python(name))) is not None:
            found[name] = record.installed_digest
    return found


def weights(
    dimensions: Sequence[str], places: Places, how: str = "all", *, variant: Variant = _WHOLE
) -> dict[str, str]:
    """Digest of every weight file of the dimensions, by name: of all bytes, or `sampled`."""
    names = dict.fromkeys(n for d in dimensions for n in needs(d, variant))
    paths = {n: p for n in names if (p := find(n, places)) is not None}
    return {n: digest_of(n, p, "all" if how == "all" else "sampled") for n, p in paths.items()}
