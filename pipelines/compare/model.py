"""What a comparison says, as plain values with a JSON form: the command line and the page render the same ones.

`before` and `after` are the first and the second thing named; None where one side has nothing of the sort.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

from pipelines.keys import Change
from pipelines.ledger.types import iso

COMPARISON_SCHEMA = 1


class Jsonable:
    """Gives a dataclass `to_json`: its fields by name, tuples as lists, times as ISO text."""

    def to_json(self) -> dict[str, Any]:
        return {f.name: to_plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]


def to_plain(value: Any) -> Any:
    if isinstance(value, Jsonable):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(v) for v in value]
    return iso(value) if isinstance(value, datetime) else value


@dataclass(frozen=True)
class FieldChange(Jsonable):
    """One differing component of a stage key (config, input, seed, probe, stage, lock, code, weights, numerics)."""

    component: str
    field: str
    before: object
    after: object
    words: str

    @classmethod
    def of(cls, change: Change) -> FieldChange:
        return cls(change.component, change.field, change.old, change.new, change.words())


@dataclass(frozen=True)
class Difference(Jsonable):
    """A named value on both sides: a library's version, a host, a digest."""

    name: str
    before: object
    after: object


@dataclass(frozen=True)
class MetricDelta(Jsonable):
    """A number on both sides. `delta` is after - before; None where one is missing, or where two scores were not
    measured in the same way: then `note` says in what they differ. `relative` is delta / |before|."""

    name: str
    before: float | None
    after: float | None
    delta: float | None
    relative: float | None
    note: str = ""


@dataclass(frozen=True)
class CodeDelta(Jsonable):
    """Files that differ, and the commits they stand at. `commits`: how many lie between them and the first subjects,
    where both are in the checkout here; None elsewhere."""

    files: tuple[FieldChange, ...]
    before_commit: str | None
    after_commit: str | None
    before_dirty: bool
    after_dirty: bool
    before_diff: str | None
    after_diff: str | None
    commits: int | None = None
    subjects: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """`abc123..def456+` for people; `+` marks uncommitted changes."""
        sides = (self.before_commit, self.before_dirty), (self.after_commit, self.after_dirty)
        return "..".join(f"{(commit or 'unknown')[:12]}{'+' * dirty}" for commit, dirty in sides)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "range": self.range}


@dataclass(frozen=True)
class DataDelta(Jsonable):
    """Clips of two datasets (or tables of kept clips). Counts are None where `note` says why they are not known;
    examples are the first clips in order of id."""

    kind: str
    node_id: str | None
    before_id: str | None
    after_id: str | None
    before: int | None = None
    after: int | None = None
    added: int | None = None
    removed: int | None = None
    common: int | None = None
    added_examples: tuple[dict[str, object], ...] = ()
    removed_examples: tuple[dict[str, object], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class SampleFile(Jsonable):
    """`uri` is the artifact's place, `file` the path below it."""

    artifact_id: str
    uri: str
    file: str
    sha256: str


@dataclass(frozen=True)
class SamplePair(Jsonable):
    """The videos of one prompt and seed. `same`: equal byte for byte."""

    node_id: str | None
    prompt: str
    seed: int
    before: SampleFile | None
    after: SampleFile | None

    @property
    def same(self) -> bool:
        return self.before is not None and self.after is not None and self.before.sha256 == self.after.sha256

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "same": self.same}


@dataclass(frozen=True)
class OutputPair(Jsonable):
    name: str
    kind: str
    before_id: str | None
    after_id: str | None

    @property
    def same(self) -> bool:
        return self.before_id == self.after_id

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "same": self.same}


@dataclass(frozen=True)
class StageComparison(Jsonable):
    """Two stage runs. `changes` holds every differing component of their keys; `reason` says so in one line.

    `name` is the node's id, or the stage's where the runs stand alone.
    """

    name: str
    stage: str
    before_run: str | None
    after_run: str | None
    same_run: bool
    same_key: bool
    reason: str
    changes: tuple[FieldChange, ...] = ()
    outputs: tuple[OutputPair, ...] = ()
    environment: tuple[Difference, ...] = ()
    metrics: tuple[MetricDelta, ...] = ()
    seconds: MetricDelta | None = None

    @property
    def same_outputs(self) -> bool:
        return bool(self.outputs) and all(pair.same for pair in self.outputs)

    def of(self, *components: str) -> tuple[FieldChange, ...]:
        """Changes of these components."""
        return tuple(change for change in self.changes if change.component in components)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "same_outputs": self.same_outputs}


@dataclass(frozen=True)
class RunSide(Jsonable):
    """One of the two runs. `recipe` of a pipeline run, `stage` of a stage run."""

    id: str
    name: str
    status: str
    started_at: datetime | None
    finished_at: datetime | None
    host: str | None


@dataclass(frozen=True)
class RunComparison(Jsonable):
    """`kind`: pipeline run | stage run. `config` holds the differing fields of the resolved recipes, or of the
    stage's config; everything else is the sum over `stages`."""

    kind: str
    before: RunSide
    after: RunSide
    config: tuple[FieldChange, ...]
    data: tuple[DataDelta, ...]
    code: CodeDelta
    environment: tuple[Difference, ...]
    weights: tuple[FieldChange, ...]
    metrics: tuple[MetricDelta, ...]
    samples: tuple[SamplePair, ...]
    stages: tuple[StageComparison, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": COMPARISON_SCHEMA, **super().to_json()}


def first_of(changes: Iterable[FieldChange]) -> tuple[FieldChange, ...]:
    """Each (component, field) once, in order."""
    seen: dict[tuple[str, str, str], FieldChange] = {}
    for change in changes:
        seen.setdefault((change.component, change.field, change.words), change)
    return tuple(seen.values())
