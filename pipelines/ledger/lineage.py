"""Lineage: what an artifact was made from, and what was made from it, as one recursive query."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import Executable, and_, cast, func, literal, select
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.orm import Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.types import iso


class LineageArtifact(NamedTuple):
    artifact_id: str
    kind: str
    size_bytes: int


class LineageRun(NamedTuple):
    run_id: str
    stage: str
    stage_key: str
    exactness: str


class LineageEdge(NamedTuple):
    """`role` input: artifact -> run; output: run -> artifact. `name` is the declared port."""

    run_id: str
    role: str
    name: str
    artifact_id: str


class ReuseEdge(NamedTuple):
    """A pipeline run that took a run over instead of repeating it."""

    pipeline_run_id: str
    recipe: str
    node_id: str
    run_id: str
    reason: str
    at: str


@dataclass(frozen=True)
class LineageGraph:
    """Artifacts and runs reachable from `root` in one direction (`up` or `down`), nearest sets included."""

    root: str
    direction: str
    artifacts: dict[str, LineageArtifact]
    runs: dict[str, LineageRun]
    edges: list[LineageEdge]
    reuses: list[ReuseEdge] = field(default_factory=list)

    @cached_property
    def _steps(self) -> dict[str, list[tuple[LineageEdge, str]]]:
        leaving = "output" if self.direction == "up" else "input"
        steps: dict[str, list[tuple[LineageEdge, str]]] = {}
        for edge in self.edges:
            here, there = edge.artifact_id, edge.run_id
            if edge.role != leaving:
                here, there = there, here
            steps.setdefault(here, []).append((edge, there))
        return steps

    def neighbours(self, node: str) -> list[tuple[LineageEdge, str]]:
        """One step away from the root: runs of an artifact, or artifacts of a run, with the edge walked."""
        return self._steps.get(node, [])

    def to_json(self) -> dict[str, Any]:
        return {
            "root": self.root,
            "direction": self.direction,
            "artifacts": [a._asdict() for a in self.artifacts.values()],
            "runs": [r._asdict() for r in self.runs.values()],
            "edges": [e._asdict() for e in self.edges],
            "reuses": [r._asdict() for r in self.reuses],
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
            known = select(schema.Artifact).where(schema.Artifact.artifact_id == root).order_by(schema.Artifact.kind)
            first = session.scalars(known).first()
            if first is None:
                raise InputError("ledger has no such artifact", value=root, next_step="m4v artifacts list")
            graph = LineageGraph(root, direction, {root: LineageArtifact(root, first.kind, first.size_bytes)}, {}, [])
            near_role, far_role = ("output", "input") if direction == "up" else ("input", "output")
            edges: set[LineageEdge] = set()
            # One row for every way through a run: in by a port of a reached artifact, out by another, if any.
            for run_id, stage, key, exactness, near, near_id, far, far_id, kind, size in session.execute(
                _query(root, direction)
            ):
                if run_id not in graph.runs:
                    graph.runs[run_id] = LineageRun(run_id, stage, key, exactness)
                edges.add(LineageEdge(run_id, near_role, near, near_id))
                if far_id is not None:
                    edges.add(LineageEdge(run_id, far_role, far, far_id))
                    if far_id not in graph.artifacts:
                        graph.artifacts[far_id] = LineageArtifact(far_id, kind, size)
            graph.edges.extend(sorted(edges))
            graph.reuses.extend(_reuses(session, sorted(graph.runs)))
            return graph


def _query(root: str, direction: str) -> Executable:
    near, far = (schema.RunOutput, schema.RunInput) if direction == "up" else (schema.RunInput, schema.RunOutput)
    # UNION drops what was seen, so shared ancestors are walked once and a circle ends.
    reached = select(literal(root).label("id")).cte("reached", recursive=True)
    reached = reached.union(
        select(far.artifact_id).join(near, near.run_id == far.run_id).join(reached, near.artifact_id == reached.c.id)
    )
    run, artifact = schema.StageRun, schema.Artifact
    return (
        select(
            run.run_id, run.stage, run.stage_key, run.exactness,
            near.name, near.artifact_id, far.name, far.artifact_id, artifact.kind, artifact.size_bytes,
        )
        .select_from(reached)
        .join(near, near.artifact_id == reached.c.id)
        .join(run, run.run_id == near.run_id)
        .outerjoin(far, far.run_id == near.run_id)
        .outerjoin(artifact, and_(artifact.artifact_id == far.artifact_id, artifact.kind == far.kind))
    )  # fmt: skip


def _reuses(session: Session, run_ids: Sequence[str]) -> list[ReuseEdge]:
    # One parameter however many runs: SQL parameters are limited in number, and slow to bind.
    if session.get_bind().dialect.name == "sqlite":
        members = func.json_each(json.dumps(run_ids)).table_valued("value")
    else:
        members = func.json_array_elements_text(cast(list(run_ids), JSON)).table_valued("value")
    reuse = schema.Reuse
    query = (
        select(reuse, schema.PipelineRun.recipe)
        .join(schema.PipelineRun, schema.PipelineRun.pipeline_run_id == reuse.pipeline_run_id)
        .where(reuse.run_id.in_(select(members.c.value)))
        .order_by(reuse.reuse_id)
    )
    return [
        ReuseEdge(r.pipeline_run_id, recipe, r.node_id, r.run_id, r.reason, iso(r.recorded_at))
        for r, recipe in session.execute(query)
    ]
