"""What the page of a pipeline run shows: its stages with their states, as a table and as a graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydantic import ValidationError

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import canonical_json, digest_json
from m4v.core.config import parse
from m4v.core.errors import M4VError
from pipelines.ledger import AttemptRow, Ledger, NodeOutcome, NodeRow, PipelineRunRow, PortRow, RunRow, Status
from pipelines.ledger.listings import RunFilter
from pipelines.web.app.run_list import progress_of
from pipelines.web.graph_layout import BOX_HEIGHT, BOX_WIDTH, GraphLayout, lay_out

WAITING = "waiting"
_WORDS = {NodeOutcome.HIT: "reused"}
Edge = tuple[str, str]


@dataclass(frozen=True)
class StageLine:
    """One stage of the run. `attempt` is the one that made its outputs, or that is at it now."""

    node_id: str
    stage: str
    state: str
    reason: str = ""
    run: RunRow | None = None
    attempt: AttemptRow | None = None

    @property
    def words(self) -> str:
        return _WORDS.get(self.state, self.state)  # type: ignore[call-overload, no-any-return]

    @property
    def is_live(self) -> bool:
        return self.state == NodeOutcome.RUNNING

    @property
    def duration_s(self) -> float | None:
        return self.attempt.duration_s if self.attempt else None

    @property
    def outputs(self) -> tuple[PortRow, ...]:
        return self.run.outputs if self.run else ()

    @property
    def trouble(self) -> str:
        """Why there are no outputs, as the attempt has said it."""
        bad = self.state in (NodeOutcome.FAILED, NodeOutcome.DRAINED) and self.attempt is not None
        return self.attempt.message if bad and self.attempt else ""

    @property
    def address(self) -> str:
        """Its page: the stage run, else the attempt, else its row on this page."""
        if self.run is not None:
            return f"/stage-runs/{self.run.run_id}"
        return f"/attempts/{self.attempt.attempt_id}" if self.attempt else f"#stage-{self.node_id}"


@dataclass(frozen=True)
class RunView:
    row: PipelineRunRow
    stages: tuple[StageLine, ...]
    layout: GraphLayout
    before: str | None
    box: tuple[int, int] = (BOX_WIDTH, BOX_HEIGHT)

    @property
    def is_live(self) -> bool:
        return self.row.status == Status.RUNNING

    @property
    def duration_s(self) -> float | None:
        return None if self.row.finished_at is None else (self.row.finished_at - self.row.started_at).total_seconds()

    def count(self, *states: str) -> int:
        return sum(s.state in states for s in self.stages)

    @property
    def reused_s(self) -> float:
        """Work that reuse has saved: the time of the attempts whose outputs were taken over."""
        return sum(s.duration_s or 0.0 for s in self.stages if s.state == NodeOutcome.HIT)

    @property
    def worked_s(self) -> float:
        return sum(s.duration_s or 0.0 for s in self.stages if s.state == NodeOutcome.RAN)

    @property
    def report(self) -> str | None:
        """The report's artifact, once there is one."""
        ports = (p for s in self.stages for p in s.outputs if p.kind == ArtifactKind.REPORT)
        return next((p.artifact_id for p in ports), None)

    @property
    def seen(self) -> str:
        """Changes whenever something that the page shows of the stages does."""
        shown: list[object] = [str(self.row.status), self.row.message]
        shown += [[s.node_id, s.state, s.reason, progress_of(s.attempt) if s.attempt else None] for s in self.stages]
        return digest_json(shown)[:12]


def run_view(ledger: Ledger, row: PipelineRunRow) -> RunView:
    """The run as it is now."""
    nodes = {n.node_id: n for n in ledger.nodes(row.pipeline_run_id)}
    runs = ledger.stage_runs_of({n.run_id for n in nodes.values() if n.run_id})
    attempts = ledger.attempts_of({a for n in nodes.values() if (a := _attempt_id(n, runs))})
    live = {a.node_id: a for a in ledger.live_attempts([row.pipeline_run_id])}
    names, planned = _planned_graph(row)
    if row.status != Status.RUNNING:
        names = {}  # what was not reached was perhaps never wanted
    stages = [
        _line(node, runs, attempts.get(_attempt_id(node, runs) or "") or live.get(node.node_id))
        for node in nodes.values()
    ]
    stages += [StageLine(name, stage, WAITING) for name, stage in names.items() if name not in nodes]
    order = {name: place for place, name in enumerate(names)}
    stages.sort(key=lambda s: order.get(s.node_id, -1))
    ids = [s.node_id for s in stages]
    older = ledger.list_runs(RunFilter(recipe=row.recipe), after=row.pipeline_run_id, limit=1).rows
    return RunView(
        row, tuple(stages), lay_out(ids, [*planned, *_made_edges(stages)]), older[0].pipeline_run_id if older else None
    )


def _attempt_id(node: NodeRow, runs: Mapping[str, RunRow]) -> str | None:
    run = runs.get(node.run_id or "")
    return run.attempt_id if run else node.attempt_id


def _line(node: NodeRow, runs: Mapping[str, RunRow], attempt: AttemptRow | None) -> StageLine:
    return StageLine(node.node_id, node.stage, str(node.how), node.reason, runs.get(node.run_id or ""), attempt)


def _made_edges(stages: list[StageLine]) -> list[Edge]:
    """Which stage's output another one has read."""
    makers = {port.artifact_id: stage.node_id for stage in stages for port in stage.outputs}
    return [
        (makers[port.artifact_id], stage.node_id)
        for stage in stages
        if stage.run
        for port in stage.run.inputs
        if port.artifact_id in makers
    ]


def _planned_graph(row: PipelineRunRow) -> tuple[dict[str, str], list[Edge]]:
    return _planned(canonical_json(row.resolved)) if row.resolved else ({}, [])


@lru_cache(32)
def _planned(resolved: bytes) -> tuple[dict[str, str], list[Edge]]:
    """Stage by node id and the edges, of the recipe as it was run; nothing of one that this version does not read, or
    whose files are not on this machine."""
    from pipelines.graph import build_graph
    from pipelines.recipe import Recipe

    try:
        nodes = build_graph(parse(Recipe, json.loads(resolved), "the run's recipe"))
    except (M4VError, ValidationError):
        return {}, []
    return {n.id: n.spec.name for n in nodes}, [(source, n.id) for n in nodes for source, _ in n.inputs.values()]
