"""Read verbs: listings, and rows by id or prefix with near ids when nothing fits."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Subquery, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from m4v.core.errors import InputError
from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.records import (
    ArtifactRow,
    AttemptRow,
    NodeOutcome,
    NodeRow,
    PipelineRunRow,
    RunRow,
    Status,
)
from pipelines.ledger.runs import artifact_row, load_runs

RowT = TypeVar("RowT", bound=schema.Base)
_RECENT = 100  # pipeline runs of a recipe among which a node's latest run nearly always is
_SHOWN, _POOL = 3, 2000  # near ids shown, and how many of the newest they are looked for among
_ATTEMPT_FIELDS = tuple(AttemptRow.__dataclass_fields__)
_PIPELINE_FIELDS = tuple(PipelineRunRow.__dataclass_fields__)
_NODE_FIELDS = tuple(NodeRow.__dataclass_fields__)


class QueryOps:
    """The read verbs of a Ledger. Listings are newest first."""

    _db: Database

    def runs(
        self,
        *,
        stage: str | None = None,
        stage_key: str | None = None,
        recipe: str | None = None,
        since: datetime | None = None,
        limit: int | None = 50,
    ) -> list[RunRow]:
        """Stage runs; `recipe`: of the pipeline run that made them, `since`: committed since then."""
        query = select(schema.StageRun).order_by(schema.StageRun.committed_at.desc(), schema.StageRun.run_id.desc())
        if stage is not None:
            query = query.where(schema.StageRun.stage == stage)
        if stage_key is not None:
            query = query.where(schema.StageRun.stage_key == stage_key)
        if since is not None:
            query = query.where(schema.StageRun.committed_at >= since)
        if recipe is not None:
            query = query.join(schema.Attempt, schema.Attempt.attempt_id == schema.StageRun.attempt_id)
            query = query.join(schema.PipelineRun).where(schema.PipelineRun.recipe == recipe)
        with self._db.read() as session:
            return load_runs(session, session.scalars(query.limit(limit)).all())

    def run(self, id_or_prefix: str) -> RunRow:
        """A stage run; raises InputError (with near ids) for a prefix that is unknown or not unique."""
        with self._db.read() as session:
            return load_runs(session, [one_of(session, schema.StageRun.run_id, id_or_prefix, "run")])[0]

    def latest_run(self, recipe: str, node_id: str) -> RunRow | None:
        """The run that the newest pipeline run of this recipe with a run for this node made or used."""
        with self._db.read() as session:
            run_id, whole = _latest(session, recipe, node_id, _RECENT)
            if run_id is None and not whole:
                run_id, _ = _latest(session, recipe, node_id, None)
            row = session.get(schema.StageRun, run_id) if run_id is not None else None
            return load_runs(session, [row])[0] if row is not None else None

    def latest_runs(self, recipe: str, node_ids: Collection[str]) -> dict[str, RunRow]:
        """`latest_run` of many nodes, in a handful of statements; nodes without a run are left out."""
        with self._db.read() as session:
            found = _latest_of_all(session, recipe, node_ids)
            rows = session.scalars(select(schema.StageRun).where(schema.StageRun.run_id.in_(set(found.values()))))
            runs = {run.run_id: run for run in load_runs(session, rows.all())}
            return {node: runs[run_id] for node, run_id in found.items()}

    def attempts(
        self,
        *,
        stage_key: str | None = None,
        pipeline_run_id: str | None = None,
        status: Status | None = None,
        stage: str | None = None,
        recipe: str | None = None,
        node_id: str | None = None,
        since: datetime | None = None,
        after: str | None = None,
        limit: int | None = 50,
    ) -> list[AttemptRow]:
        """Attempts; `after`: only those that stand behind this one, whose id is whole.

        Raises InputError when there is no such one.
        """
        query = select(schema.Attempt).order_by(schema.Attempt.started_at.desc(), schema.Attempt.attempt_id.desc())
        if stage_key is not None:
            query = query.where(schema.Attempt.stage_key == stage_key)
        if pipeline_run_id is not None:
            query = query.where(schema.Attempt.pipeline_run_id == pipeline_run_id)
        if status is not None:
            query = query.where(schema.Attempt.status == status)
        if stage is not None:
            query = query.where(schema.Attempt.stage == stage)
        if since is not None:
            query = query.where(schema.Attempt.started_at >= since)
        if node_id is not None:
            query = query.where(schema.Attempt.node_id == node_id)
        if recipe is not None:
            query = query.join(schema.PipelineRun).where(schema.PipelineRun.recipe == recipe)
        with self._db.read() as session:
            if after is not None:
                at, identity = schema.Attempt.started_at, schema.Attempt.attempt_id
                last = one_of(session, identity, after, "attempt")
                behind = and_(at == last.started_at, identity < last.attempt_id)
                query = query.where(or_(at < last.started_at, behind))
            return [attempt_row(r) for r in session.scalars(query.limit(limit))]

    def node_ids(self, stage: str) -> list[str]:
        """Nodes of recipes that executed a stage, sorted."""
        attempt = schema.Attempt
        query = select(attempt.node_id).where(attempt.stage == stage, attempt.node_id.is_not(None)).distinct()
        with self._db.read() as session:
            return sorted(node for node in session.scalars(query) if node is not None)

    def attempt(self, id_or_prefix: str) -> AttemptRow:
        with self._db.read() as session:
            return attempt_row(one_of(session, schema.Attempt.attempt_id, id_or_prefix, "attempt"))

    def pipeline_runs(self, *, recipe: str | None = None, limit: int | None = 50) -> list[PipelineRunRow]:
        run = schema.PipelineRun
        query = select(run).order_by(run.started_at.desc(), run.pipeline_run_id.desc())
        if recipe is not None:
            query = query.where(run.recipe == recipe)
        with self._db.read() as session:
            return [_pipeline_row(r) for r in session.scalars(query.limit(limit))]

    def pipeline_run(self, id_or_prefix: str) -> PipelineRunRow:
        with self._db.read() as session:
            return _pipeline_row(one_of(session, schema.PipelineRun.pipeline_run_id, id_or_prefix, "pipeline run"))

    def nodes(self, pipeline_run_id: str) -> list[NodeRow]:
        """Nodes of a pipeline run, in the order of their last word."""
        node = schema.PipelineRunNode
        query = select(node).where(node.pipeline_run_id == pipeline_run_id).order_by(node.recorded_at, node.node_id)
        with self._db.read() as session:
            return [node_row(r) for r in session.scalars(query)]

    def resolve(self, id_or_prefix: str) -> PipelineRunRow | RunRow | AttemptRow | ArtifactRow:
        """Whatever has this id: pipeline run, run, attempt or artifact; raises InputError otherwise."""
        kinds: list[tuple[InstrumentedAttribute[str], Any]] = [
            (schema.PipelineRun.pipeline_run_id, self.pipeline_run),
            (schema.StageRun.run_id, self.run),
            (schema.Attempt.attempt_id, self.attempt),
            (schema.Artifact.artifact_id, self.artifact),
        ]
        with self._db.read() as session:
            found = [(i, get) for c, get in kinds for i in dict.fromkeys(_with_prefix(session, c, id_or_prefix))]
            if len(found) != 1:
                near = [i for column, _ in kinds for i in _near(session, column, id_or_prefix)]
                raise _not_one(id_or_prefix, "id", [i for i, _ in found], near)
        row: PipelineRunRow | RunRow | AttemptRow | ArtifactRow = found[0][1](found[0][0])
        return row

    def artifacts(self, *, kind: str | None = None, limit: int | None = 50) -> list[ArtifactRow]:
        query = select(schema.Artifact).order_by(schema.Artifact.recorded_at.desc(), schema.Artifact.artifact_id)
        if kind is not None:
            query = query.where(schema.Artifact.kind == str(kind))
        with self._db.read() as session:
            return [artifact_row(r) for r in session.scalars(query.limit(limit))]

    def artifact(self, id_or_prefix: str, kind: str | None = None) -> ArtifactRow:
        """An artifact; raises InputError (with near ids) for a prefix that is unknown or not unique.

        `kind` tells apart the same bytes recorded under two kinds; without it the first kind is given.
        """
        with self._db.read() as session:
            row = one_of(session, schema.Artifact.artifact_id, id_or_prefix, "artifact")
            if kind is not None and row.kind != kind:
                row = session.get(schema.Artifact, (row.artifact_id, str(kind)))
                if row is None:
                    raise InputError(f"ledger has no {kind} of this id", value=id_or_prefix, where="ledger")
            return artifact_row(row)

    def producers(self, artifact_id: str) -> list[RunRow]:
        """Runs whose output this artifact is, oldest first."""
        return self._runs_by(schema.RunOutput, artifact_id)

    def consumers(self, artifact_id: str) -> list[RunRow]:
        """Runs that read this artifact, oldest first."""
        return self._runs_by(schema.RunInput, artifact_id)

    def _runs_by(self, table: type[schema.RunInput] | type[schema.RunOutput], artifact_id: str) -> list[RunRow]:
        ids = select(table.run_id).where(table.artifact_id == artifact_id)
        query = select(schema.StageRun).where(schema.StageRun.run_id.in_(ids)).order_by(schema.StageRun.committed_at)
        with self._db.read() as session:
            return load_runs(session, session.scalars(query).all())


def _latest(session: Session, recipe: str, node_id: str, among: int | None) -> tuple[str | None, bool]:
    """Run id of a node in the newest `among` pipeline runs of a recipe, and whether those are all that there are.

    A node that has run in each of ten thousand runs is found in the first of them, not by sorting all.
    """
    node, ordered = schema.PipelineRunNode, _newest(recipe, among)
    found = session.scalars(
        select(node.run_id)
        .join(ordered, ordered.c.pipeline_run_id == node.pipeline_run_id)
        .where(node.node_id == node_id, node.run_id.is_not(None))
        .order_by(ordered.c.started_at.desc(), ordered.c.pipeline_run_id.desc())
        .limit(1)
    ).first()
    if found is not None or among is None:
        return found, among is None
    return None, (session.scalar(select(func.count()).select_from(ordered)) or 0) < among


def _latest_of_all(session: Session, recipe: str, node_ids: Collection[str]) -> dict[str, str]:
    """Node id -> run id, of the nodes that have one."""
    node, ordered = schema.PipelineRunNode, _newest(recipe, _RECENT)
    recent = session.execute(
        select(node.node_id, node.run_id)
        .join(ordered, ordered.c.pipeline_run_id == node.pipeline_run_id)
        .where(node.run_id.is_not(None))
        .order_by(ordered.c.started_at, ordered.c.pipeline_run_id)
    )
    found = {name: run_id for name, run_id in recent if name in node_ids}  # the newest stands last
    absent = [name for name in node_ids if name not in found]
    if absent and (session.scalar(select(func.count()).select_from(ordered)) or 0) == _RECENT:
        older = {name: _latest(session, recipe, name, None)[0] for name in absent}
        found |= {name: run_id for name, run_id in older.items() if run_id is not None}
    return found


def _newest(recipe: str, among: int | None) -> Subquery:
    """Ids and starts of the newest pipeline runs of a recipe (all: `among` None)."""
    run = schema.PipelineRun
    # The expression keeps SQLite from sorting all runs of the recipe: the list's index has them in order.
    newest = select(run.pipeline_run_id, run.started_at).where(func.coalesce(run.recipe, "") == recipe)
    return newest.order_by(run.started_at.desc(), run.pipeline_run_id.desc()).limit(among).subquery()


def one_of(session: Session, column: InstrumentedAttribute[str], prefix: str, what: str) -> Any:
    """The one row whose id is or begins with `prefix`; raises InputError otherwise."""
    ids = list(dict.fromkeys(_with_prefix(session, column, prefix)))
    if len(ids) != 1:
        raise _not_one(prefix, what, ids, _near(session, column, prefix))
    return session.scalars(
        select(column.class_).where(column == ids[0]).order_by(*column.class_.__table__.primary_key)
    ).first()


def _with_prefix(session: Session, column: InstrumentedAttribute[str], prefix: str) -> Sequence[str]:
    if not prefix:
        return []
    exact = session.scalars(select(column).where(column == prefix)).all()
    if exact:
        return exact
    query = select(column).where(column.startswith(prefix, autoescape=True))
    return session.scalars(query.order_by(column).limit(_SHOWN + 2)).all()


def _near(session: Session, column: InstrumentedAttribute[str], prefix: str) -> list[str]:
    """Known ids whose beginnings are most like `prefix`."""
    length = max(len(prefix), 1)
    newest = session.scalars(select(func.distinct(column)).order_by(column.desc()).limit(_POOL)).all()
    heads = {i[:length]: i for i in newest}
    return [heads[h] for h in difflib.get_close_matches(prefix, heads, n=_SHOWN, cutoff=0.5)]


def _not_one(prefix: str, what: str, ids: Sequence[str], near: Sequence[str]) -> InputError:
    if ids:
        shown = ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
        return InputError(f"more than one {what} begins so", value=prefix, where="ledger", next_step=f"one of {shown}")
    hint = f"did you mean {' or '.join(near)}?" if near else "m4v runs list, m4v artifacts list"
    return InputError(f"ledger has no such {what}", value=prefix, where="ledger", next_step=hint)


def _values(row: schema.Base, fields: Sequence[str]) -> dict[str, Any]:
    return {f: getattr(row, f) for f in fields}


def attempt_row(row: schema.Attempt) -> AttemptRow:
    return AttemptRow(**{**_values(row, _ATTEMPT_FIELDS), "status": Status(row.status)})


def _pipeline_row(row: schema.PipelineRun) -> PipelineRunRow:
    return PipelineRunRow(**{**_values(row, _PIPELINE_FIELDS), "status": Status(row.status)})


def node_row(row: schema.PipelineRunNode) -> NodeRow:
    return NodeRow(**{**_values(row, _NODE_FIELDS), "how": NodeOutcome(row.how)})
