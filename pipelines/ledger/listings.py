"""Listings a page at a time: filtered pipeline runs and artifacts, newest first, without their large columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Row, Select, func, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import schema
from pipelines.ledger.database import Database
from pipelines.ledger.queries import attempt_row, node_row, one_of
from pipelines.ledger.records import AttemptRow, NodeOutcome, NodeRow, RunRow, Status
from pipelines.ledger.runs import load_runs

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which pipeline runs; unset means any. `text` is looked for in id (its beginning), recipe, trigger, host and,
    of runs that did not succeed, in the message."""

    recipe: str | None = None
    status: Status | None = None
    since: datetime | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A pipeline run as lists show it. `outcomes` counts its nodes by what became of them."""

    pipeline_run_id: str
    recipe: str
    recipe_digest: str
    status: Status
    trigger: str
    host: str
    started_at: datetime
    finished_at: datetime | None
    exit_class: int | None
    message: str
    outcomes: dict[NodeOutcome, int] = field(default_factory=dict)

    @property
    def duration_s(self) -> float | None:
        return None if self.finished_at is None else (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedArtifact:
    artifact_id: str
    kind: ArtifactKind
    size_bytes: int
    files: int
    recorded_at: datetime
    deletion: str | None


@dataclass(frozen=True, slots=True)
class Page(Generic[RowT]):
    """Some rows of a longer listing; `older` and `newer` say whether there are more on either side."""

    rows: tuple[RowT, ...]
    older: bool
    newer: bool


class ListingOps:
    """The paged listings of a Ledger."""

    _db: Database

    def list_runs(
        self, wanted: RunFilter, *, after: str | None = None, before: str | None = None, limit: int = 50
    ) -> Page[ListedRun]:
        """Runs older than the run `after`, or just newer than the run `before`; else the newest.

        Raises InputError when the run that is named does not exist.
        """
        run = schema.PipelineRun
        conditions = _run_conditions(wanted)
        with self._db.read() as session:
            cursor = None
            if after or before:
                row = one_of(session, run.pipeline_run_id, after or before or "", "pipeline run")
                cursor = (row.started_at, row.pipeline_run_id)
            found = _page(
                session, _LISTED, conditions, (run.started_at, run.pipeline_run_id), cursor, before is not None, limit
            )
            outcomes = _outcomes(session, [r.pipeline_run_id for r in found.rows])
            rows = tuple(_listed(r, outcomes) for r in found.rows)
        return Page(rows, found.older, found.newer)

    def listed_runs(self, pipeline_run_ids: Collection[str]) -> list[ListedRun]:
        """These runs as they are now; unknown ids are passed over."""
        query = select(*_LISTED).where(schema.PipelineRun.pipeline_run_id.in_(list(pipeline_run_ids)))
        with self._db.read() as session:
            rows = session.execute(query).all()
            outcomes = _outcomes(session, [r.pipeline_run_id for r in rows])
            return [_listed(r, outcomes) for r in rows]

    def recipes(self) -> list[str]:
        """Names of all recipes that were ever run, sorted."""
        with self._db.read() as session:
            names: list[str] = []
            last: str | None = ""
            while last is not None:  # from one name to the next on the index: there are few among many runs
                nearest = select(func.min(schema.PipelineRun.recipe)).where(schema.PipelineRun.recipe > last)
                last = session.scalar(nearest)
                names += [last] if last is not None else []
            return names

    def live_attempts(self, pipeline_run_ids: Collection[str]) -> list[AttemptRow]:
        """Attempts of these pipeline runs that are running, in the order of their start."""
        attempt = schema.Attempt
        query = select(attempt).where(
            attempt.pipeline_run_id.in_(list(pipeline_run_ids)), attempt.status == str(Status.RUNNING)
        )
        with self._db.read() as session:
            return [attempt_row(a) for a in session.scalars(query.order_by(attempt.started_at, attempt.attempt_id))]

    def stage_runs_of(self, run_ids: Collection[str]) -> dict[str, RunRow]:
        """Stage runs by id; unknown ids are passed over."""
        query = select(schema.StageRun).where(schema.StageRun.run_id.in_(list(run_ids)))
        with self._db.read() as session:
            return {r.run_id: r for r in load_runs(session, session.scalars(query).all())}

    def attempts_of(self, attempt_ids: Collection[str]) -> dict[str, AttemptRow]:
        """Attempts by id; unknown ids are passed over."""
        query = select(schema.Attempt).where(schema.Attempt.attempt_id.in_(list(attempt_ids)))
        with self._db.read() as session:
            return {a.attempt_id: attempt_row(a) for a in session.scalars(query)}

    def uses_of(self, run_id: str, limit: int = 50) -> list[NodeRow]:
        """Where pipeline runs made or took over this stage run, newest first."""
        node = schema.PipelineRunNode
        query = select(node).where(node.run_id == run_id).order_by(node.pipeline_run_id.desc(), node.node_id)
        with self._db.read() as session:
            return [node_row(n) for n in session.scalars(query.limit(limit))]

    def run_of_node_before(self, node_id: str, pipeline_run_id: str, run_id: str) -> str | None:
        """The stage run, another one than `run_id`, that this node had last before this pipeline run."""
        node = schema.PipelineRunNode
        earlier = select(node.run_id).where(
            node.node_id == node_id, node.pipeline_run_id < pipeline_run_id, node.run_id.is_not(None)
        )
        with self._db.read() as session:
            return session.scalar(earlier.where(node.run_id != run_id).order_by(node.pipeline_run_id.desc()).limit(1))

    def list_artifacts(
        self,
        *,
        kind: str | None = None,
        text: str = "",
        after: tuple[str, str] | None = None,
        before: tuple[str, str] | None = None,
        limit: int = 50,
    ) -> Page[ListedArtifact]:
        """Artifacts, newest first; `text` begins their ids. `after` and `before` are (artifact id, kind).

        Raises InputError when the artifact that is named does not exist.
        """
        artifact = schema.Artifact
        conditions: list[ColumnElement[bool]] = []
        if kind:
            conditions.append(artifact.kind == kind)
        if text:
            conditions.append(artifact.artifact_id.startswith(text.lower(), autoescape=True))
        with self._db.read() as session:
            cursor = None
            if named := after or before:
                at = session.scalar(
                    select(artifact.recorded_at).where(artifact.artifact_id == named[0], artifact.kind == named[1])
                )
                at = at or one_of(session, artifact.artifact_id, named[0], "artifact").recorded_at
                cursor = (at, *named)
            order = (artifact.recorded_at, artifact.artifact_id, artifact.kind)
            found = _page(session, _ARTIFACT, conditions, order, cursor, before is not None, limit)
        rows = (ListedArtifact(**{**r._mapping, "kind": ArtifactKind(r.kind)}) for r in found.rows)
        return Page(tuple(rows), found.older, found.newer)

    def kinds(self) -> dict[str, int]:
        """How many artifacts there are of each kind."""
        query = select(schema.Artifact.kind, func.count()).group_by(schema.Artifact.kind).order_by(schema.Artifact.kind)
        with self._db.read() as session:
            return {row.kind: row[1] for row in session.execute(query)}


_run = schema.PipelineRun
_LISTED: tuple[InstrumentedAttribute[Any], ...] = (
    _run.pipeline_run_id, _run.recipe, _run.recipe_digest, _run.status, _run.trigger, _run.host, _run.started_at,
    _run.finished_at, _run.exit_class, _run.message,
)  # fmt: skip
_ARTIFACT: tuple[InstrumentedAttribute[Any], ...] = tuple(
    getattr(schema.Artifact, name) for name in ListedArtifact.__dataclass_fields__
)


def _run_conditions(wanted: RunFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.recipe:
        # As an expression, so that the index of lists answers it: the recipe's own index leads to wide rows, unsorted.
        conditions.append(_run.recipe.concat("") == wanted.recipe)
    if wanted.status:
        conditions.append(_run.status == str(wanted.status))
    if wanted.since:
        conditions.append(_run.started_at >= wanted.since)
    if text := wanted.text.strip():
        words = _run.recipe.concat("\n").concat(_run.trigger).concat("\n").concat(_run.host)
        found = [_run.pipeline_run_id.startswith(text.lower(), autoescape=True)]
        found.append(words.icontains(text, autoescape=True))
        # The message lies behind the large columns of a row: it is read last, and not of the many that went well.
        told = (_run.status != str(Status.SUCCEEDED)) & _run.message.icontains(text, autoescape=True)
        conditions.append(or_(*found, told))
    return conditions


def _page(
    session: Session,
    columns: Sequence[InstrumentedAttribute[Any]],
    conditions: Sequence[ColumnElement[bool]],
    order: Sequence[InstrumentedAttribute[Any]],
    cursor: tuple[object, ...] | None,
    newer: bool,
    limit: int,
) -> Page[Row[Any]]:
    """One page by descending `order`, on the far side of the cursor."""
    place = tuple_(*order)
    query: Select[Any] = select(*columns).where(*conditions)
    if cursor is not None:
        query = query.where(place > cursor if newer else place < cursor)
    query = query.order_by(*(c.asc() if newer else c.desc() for c in order)).limit(limit + 1)
    rows = list(session.execute(query).all())
    more, rows = len(rows) > limit, rows[:limit]
    if newer:
        return Page(tuple(reversed(rows)), older=True, newer=more)
    return Page(tuple(rows), older=more, newer=cursor is not None)


def _outcomes(session: Session, pipeline_run_ids: Sequence[str]) -> dict[str, dict[NodeOutcome, int]]:
    node = schema.PipelineRunNode
    query = select(node.pipeline_run_id, node.how, func.count()).where(node.pipeline_run_id.in_(pipeline_run_ids))
    found: dict[str, dict[NodeOutcome, int]] = {}
    for run_id, how, count in session.execute(query.group_by(node.pipeline_run_id, node.how)):
        found.setdefault(run_id, {})[NodeOutcome(how)] = count
    return found


def _listed(row: Row[Any], outcomes: dict[str, dict[NodeOutcome, int]]) -> ListedRun:
    values = {**row._mapping, "status": Status(row.status)}
    return ListedRun(**values, outcomes=outcomes.get(row.pipeline_run_id, {}))
