"""Lineage a step at a time: what is next to an artifact or a run, never more than asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.lineage import LineageArtifact, LineageEdge, LineageRun, ReuseEdge
from pipelines.ledger.types import iso

_IN, _OUT = "input", "output"
_TOLD = 3  # reuses of a run that are named; the rest is counted
Port = type[schema.RunInput] | type[schema.RunOutput]


class Direction(StrEnum):
    """`up`: what a thing was made from; `down`: what was made from it."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Degree:
    """How many neighbours a node has: runs of an artifact, artifacts of a run."""

    up: int
    down: int


@dataclass
class LineageStep:
    """A piece of the graph round a node. Of a run all neighbours in the direction are here, at most `limit`; of an
    artifact `shown` of its `total` runs, each with its own artifacts on the far side."""

    node: str
    direction: Direction
    artifacts: dict[str, LineageArtifact] = field(default_factory=dict)
    runs: dict[str, LineageRun] = field(default_factory=dict)
    edges: list[LineageEdge] = field(default_factory=list)
    degrees: dict[str, Degree] = field(default_factory=dict)
    reuses: list[ReuseEdge] = field(default_factory=list)
    reused: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of runs: what their recipe calls them
    total: int = 0
    shown: int = 0
    offset: int = 0

    @property
    def more(self) -> int:
        """Neighbours after those shown."""
        return max(0, self.total - self.offset - self.shown)


class NeighbourOps:
    """The step-by-step lineage of a Ledger."""

    _db: Database

    def lineage_step(
        self, identity: str, direction: Direction, *, offset: int = 0, limit: int = 25, far_limit: int = 25
    ) -> LineageStep:
        """One step from an artifact or a run, newest runs first, `limit` of them from `offset` on; a run beside the
        node shows at most `far_limit` artifacts.

        Raises InputError for an id that is neither.
        """
        with self._db.read() as session:
            step = LineageStep(identity, direction, offset=offset)
            if (run := session.get(schema.StageRun, identity)) is not None:
                _around_run(session, step, run, limit)
            elif _artifact(session, step, identity):
                _around_artifact(session, step, limit, far_limit)
            else:
                raise InputError("ledger has no such artifact or run", value=identity, next_step="m4v artifacts list")
            _degrees(session, step)
            _reuses(session, step)
            _names(session, step)
            return step


def _far(direction: Direction) -> tuple[Port, str]:
    return (schema.RunInput, _IN) if direction is Direction.UP else (schema.RunOutput, _OUT)


def _near(direction: Direction) -> tuple[Port, str]:
    return (schema.RunOutput, _OUT) if direction is Direction.UP else (schema.RunInput, _IN)


def _around_run(session: Session, step: LineageStep, run: schema.StageRun, limit: int) -> None:
    step.runs[run.run_id] = LineageRun(run.run_id, run.stage, run.stage_key, run.exactness)
    table, _ = _far(step.direction)
    step.total = session.scalar(select(func.count()).select_from(table).where(table.run_id == run.run_id)) or 0
    step.shown = _ports(session, step, run.run_id, step.offset, limit)


def _around_artifact(session: Session, step: LineageStep, limit: int, far_limit: int) -> None:
    table, role = _near(step.direction)
    here = table.artifact_id == step.node
    distinct = func.count(func.distinct(table.run_id))
    step.total = session.scalar(select(distinct).where(here)) or 0
    chosen = select(table.run_id).where(here).distinct().order_by(table.run_id.desc()).limit(limit).offset(step.offset)
    ids = list(session.scalars(chosen))
    step.shown = len(ids)
    run = schema.StageRun
    for row in session.execute(select(run.run_id, run.stage, run.stage_key, run.exactness).where(run.run_id.in_(ids))):
        step.runs[row.run_id] = LineageRun(*row)
    for run_id, name in session.execute(select(table.run_id, table.name).where(here, table.run_id.in_(ids))):
        step.edges.append(LineageEdge(run_id, role, name, step.node))
    for run_id in ids:
        _ports(session, step, run_id, 0, far_limit)


def _ports(session: Session, step: LineageStep, run_id: str, offset: int, limit: int) -> int:
    """Add a run's artifacts on the far side; returns how many."""
    table, role = _far(step.direction)
    artifact = schema.Artifact
    query = (
        select(table.name, artifact.artifact_id, artifact.kind, artifact.size_bytes)
        .join(artifact, (artifact.artifact_id == table.artifact_id) & (artifact.kind == table.kind))
        .where(table.run_id == run_id)
        .order_by(table.name)
        .limit(limit)
        .offset(offset)
    )
    rows = session.execute(query).all()
    for name, artifact_id, kind, size in rows:
        step.artifacts[artifact_id] = LineageArtifact(artifact_id, kind, size)
        step.edges.append(LineageEdge(run_id, role, name, artifact_id))
    return len(rows)


def _artifact(session: Session, step: LineageStep, identity: str) -> bool:
    known = select(schema.Artifact).where(schema.Artifact.artifact_id == identity).order_by(schema.Artifact.kind)
    row = session.scalars(known.limit(1)).first()
    if row is not None:
        step.artifacts[identity] = LineageArtifact(identity, row.kind, row.size_bytes)
    return row is not None


def _degrees(session: Session, step: LineageStep) -> None:
    """Count the neighbours of everything in the step."""
    makers = _count(session, schema.RunOutput, schema.RunOutput.artifact_id, step.artifacts)
    readers = _count(session, schema.RunInput, schema.RunInput.artifact_id, step.artifacts)
    inputs = _count(session, schema.RunInput, schema.RunInput.run_id, step.runs)
    outputs = _count(session, schema.RunOutput, schema.RunOutput.run_id, step.runs)
    for identity in step.artifacts:
        step.degrees[identity] = Degree(makers.get(identity, 0), readers.get(identity, 0))
    for identity in step.runs:
        step.degrees[identity] = Degree(inputs.get(identity, 0), outputs.get(identity, 0))


def _count(session: Session, table: Port, column: Any, ids: Iterable[str]) -> dict[str, int]:
    counted = func.count(func.distinct(table.run_id if column.key == "artifact_id" else table.name))
    query = select(column, counted).where(column.in_(list(ids))).group_by(column)
    return {row[0]: row[1] for row in session.execute(query)}


def _reuses(session: Session, step: LineageStep) -> None:
    """How often each run was taken over instead of repeated, the newest few by name."""
    reuse, run = schema.Reuse, schema.PipelineRun
    ids: Sequence[str] = sorted(step.runs)
    counted = select(reuse.run_id, func.count()).where(reuse.run_id.in_(ids)).group_by(reuse.run_id)
    for run_id, count in session.execute(counted):
        step.reused[run_id] = count
        newest = (
            select(reuse, run.recipe)
            .join(run, run.pipeline_run_id == reuse.pipeline_run_id)
            .where(reuse.run_id == run_id)
            .order_by(reuse.reuse_id.desc())
            .limit(_TOLD)
        )
        step.reuses += [
            ReuseEdge(r.pipeline_run_id, recipe, r.node_id, r.run_id, r.reason, iso(r.recorded_at))
            for r, recipe in session.execute(newest)
        ]


def _names(session: Session, step: LineageStep) -> None:
    """The node of its recipe that each run was first made for; its stage where it was made for none."""
    run, attempt = schema.StageRun, schema.Attempt
    query = select(run.run_id, attempt.node_id).join(attempt, attempt.attempt_id == run.attempt_id)
    found = {r.run_id: r.node_id for r in session.execute(query.where(run.run_id.in_(sorted(step.runs))))}
    step.names = {run_id: found.get(run_id) or row.stage for run_id, row in step.runs.items()}
