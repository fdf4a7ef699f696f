"""Lineage: what an artifact was made from, and what was made from it, as one recursive query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, literal, select
from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.types import iso


@dataclass(frozen=True, slots=True)
class LineageArtifact:
    artifact_id: str
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LineageRun:
    run_id: str
    stage: str
    stage_key: str
    exactness: str


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """`role` input: artifact -> run; output: run -> artifact. `name` is the declared port."""

    role: str
    run_id: str
    artifact_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ReuseEdge:
    """A pipeline run that took a run over instead of repeating it."""

    pipeline_run_id: str
    recipe: str
    node_id: str
    run_id: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class LineageGraph:
    """Artifacts and runs reachable from `root` in one direction (`up` or `down`), nearest sets included."""

    root: str
    direction: str
    artifacts: dict[str, LineageArtifact]
    runs: dict[str, LineageRun]
    edges: list[LineageEdge]
    reuses: list[ReuseEdge] = field(default_factory=list)

    def neighbours(self, node: str) -> list[tuple[LineageEdge, str]]:
        """One step away from the root: runs of an artifact, or artifacts of a run, with the edge walked."""
        leaving, arriving = ("output", "input") if self.direction == "up" else ("input", "output")
        steps = [(e, e.run_id) for e in self.edges if e.artifact_id == node and e.role == leaving]
        return steps + [(e, e.artifact_id) for e in self.edges if e.run_id == node and e.role == arriving]

    def to_json(self) -> dict[str, Any]:
        def rows(values: Any) -> list[dict[str, Any]]:
            return [{name: getattr(v, name) for name in v.__slots__} for v in values]

        return {
            "root": self.root,
            "direction": self.direction,
            "artifacts": rows(self.artifacts.values()),
            "runs": rows(self.runs.values()),
            "edges": rows(self.edges),
            "reuses": rows(self.reuses),
        }


class LineageOps:
    """The lineage verbs of a Ledger."""

    _db: Database

    def lineage_up(self, artifact_id: str) -> LineageGraph:
        """Everything `artifact_id` was made from; raises InputError for an id the ledger does not know."""
        return self._lineage(artifact_id, "up")

    def lineage_down(self, artifact_id: str) -> LineageGraph:
        """Everything made from `artifact_id`; raises InputError for an id the ledger does not know."""
        return self._lineage(artifact_id, "down")

    def _lineage(self, root: str, direction: str) -> LineageGraph:
        with self._db.read() as session:
            known = select(schema.Artifact.artifact_id).where(schema.Artifact.artifact_id == root)
            if session.scalars(known).first() is None:
                raise InputError("ledger has no such artifact", value=root, next_step="m4v artifacts list")
            return _collect(session, root, direction)


def _collect(session: Session, root: str, direction: str) -> LineageGraph:
    near, far = (schema.RunOutput, schema.RunInput) if direction == "up" else (schema.RunInput, schema.RunOutput)
    # A closure over artifacts; UNION drops what was seen, so shared ancestors are walked once.
    reached = select(literal(root).label("id")).cte("reached", recursive=True)
    reached = reached.union(
        select(far.artifact_id).join(near, near.run_id == far.run_id).join(reached, near.artifact_id == reached.c.id)
    )
    ids = [row.id for row in session.execute(select(reached.c.id))]
    run_ids = select(near.run_id).where(near.artifact_id.in_(select(reached.c.id))).distinct().cte("walked")
    return LineageGraph(
        root=root,
        direction=direction,
        artifacts=_artifacts(session, select(reached.c.id), ids),
        runs=_runs(session, select(run_ids.c.run_id)),
        edges=_edges(session, "input", schema.RunInput, run_ids, reached)
        + _edges(session, "output", schema.RunOutput, run_ids, reached),
        reuses=_reuses(session, select(run_ids.c.run_id)),
    )


def _artifacts(session: Session, ids: Select[Any], order: list[str]) -> dict[str, LineageArtifact]:
    query = select(schema.Artifact.artifact_id, schema.Artifact.kind, schema.Artifact.size_bytes)
    found = {r[0]: LineageArtifact(*r) for r in session.execute(query.where(schema.Artifact.artifact_id.in_(ids)))}
    return {i: found[i] for i in order}


def _runs(session: Session, ids: Select[Any]) -> dict[str, LineageRun]:
    run = schema.StageRun
    query = select(run.run_id, run.stage, run.stage_key, run.exactness).where(run.run_id.in_(ids))
    return {r[0]: LineageRun(*r) for r in session.execute(query.order_by(run.run_id))}


def _edges(
    session: Session, role: str, table: type[schema.RunInput] | type[schema.RunOutput], runs: Any, reached: Any
) -> list[LineageEdge]:
    """Ports of the walked runs that lead to reached artifacts."""
    query = select(table.run_id, table.artifact_id, table.name).where(table.run_id.in_(select(runs.c.run_id)))
    query = query.where(table.artifact_id.in_(select(reached.c.id)))
    return [LineageEdge(role, *r) for r in session.execute(query.order_by(table.run_id, table.name))]


def _reuses(session: Session, runs: Select[Any]) -> list[ReuseEdge]:
    reuse = schema.Reuse
    query = (
        select(reuse, schema.PipelineRun.recipe)
        .join(schema.PipelineRun, schema.PipelineRun.pipeline_run_id == reuse.pipeline_run_id)
        .where(reuse.run_id.in_(runs))
        .order_by(reuse.reuse_id)
    )
    return [
        ReuseEdge(r.pipeline_run_id, recipe, r.node_id, r.run_id, r.reason, iso(r.recorded_at))
        for r, recipe in session.execute(query)
    ]
