"""Lineage as a graph that grows step by step, and as a tree for those who read: both from the same steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pipelines.ledger import Ledger, LineageArtifact, LineageRun
from pipelines.ledger.neighbours import Degree, Direction, LineageStep
from pipelines.web.render import short, size

NEIGHBOURS = 25  # of an artifact in one step
PORTS = 12  # artifacts of a run beside it in one step
FIRST_NODES = 40  # of the graph as it opens
_DEEP = 12  # steps of the first graph


@dataclass
class Graph:
    """Nodes and edges by id, as the page's script takes them. `more`: neighbours that are not here, by node and
    direction, with where the next ones begin."""

    root: str
    nodes: dict[str, dict[str, object]] = field(default_factory=dict)
    edges: dict[str, dict[str, object]] = field(default_factory=dict)
    more: dict[str, dict[str, int]] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)  # "up:ID"

    def to_json(self) -> dict[str, object]:
        return {
            "root": self.root, "nodes": list(self.nodes.values()), "edges": list(self.edges.values()),
            "more": self.more, "opened": self.opened,
        }  # fmt: skip

    def add(self, step: LineageStep) -> None:
        for artifact in step.artifacts.values():
            self.nodes.setdefault(artifact.artifact_id, artifact_node(artifact, step.degrees[artifact.artifact_id]))
        for run in step.runs.values():
            self.nodes.setdefault(run.run_id, run_node(run, step))
        for edge in step.edges:
            source, target = edge.artifact_id, edge.run_id
            if edge.role == "output":
                source, target = target, source
            name = f"{source}>{target}>{edge.name}"
            self.edges[name] = {"id": name, "source": source, "target": target, "port": edge.name, "type": edge.role}
        self._add_reuses(step)
        place = f"{step.direction}:{step.node}"
        self.more[place] = {"left": step.more, "next": step.offset + step.shown}
        if place not in self.opened:
            self.opened.append(place)

    def _add_reuses(self, step: LineageStep) -> None:
        """Cache hits: a pipeline run beside the run that it took over."""
        for reuse in step.reuses:
            self.nodes.setdefault(
                reuse.pipeline_run_id,
                {
                    "id": reuse.pipeline_run_id, "type": "reuse", "label": f"{reuse.recipe}\n{reuse.pipeline_run_id}",
                    "words": f"pipeline run {reuse.pipeline_run_id} of {reuse.recipe} took this run over", "up": 0,
                    "down": 0, "address": f"/runs/{reuse.pipeline_run_id}",
                },
            )  # fmt: skip
            name = f"{reuse.run_id}>{reuse.pipeline_run_id}>{reuse.node_id}"
            self.edges[name] = {
                "id": name, "source": reuse.run_id, "target": reuse.pipeline_run_id, "port": reuse.node_id,
                "type": "reuse", "reason": reuse.reason,
            }  # fmt: skip


def artifact_node(artifact: LineageArtifact, degree: Degree) -> dict[str, object]:
    words = f"{artifact.kind} {short(artifact.artifact_id)}, {size(artifact.size_bytes)}"
    return {
        "id": artifact.artifact_id, "type": "artifact", "kind": str(artifact.kind), "words": words,
        "label": f"{artifact.kind}\n{short(artifact.artifact_id)}", "up": degree.up, "down": degree.down,
        "address": f"/artifacts/{artifact.artifact_id}",
    }  # fmt: skip


def run_node(run: LineageRun, step: LineageStep) -> dict[str, object]:
    degree, reused = step.degrees[run.run_id], step.reused.get(run.run_id, 0)
    name = step.names[run.run_id]
    return {
        "id": run.run_id, "type": "run", "label": f"{name}\n{run.run_id}", "up": degree.up, "down": degree.down,
        "words": f"run of {name}, {run.run_id}", "address": f"/stage-runs/{run.run_id}", "reused": reused,
    }  # fmt: skip


def one_step(ledger: Ledger, identity: str, direction: Direction, offset: int) -> Graph:
    """What a click on `expand` adds."""
    graph = Graph(identity)
    graph.add(ledger.lineage_step(identity, direction, offset=offset, limit=NEIGHBOURS, far_limit=PORTS))
    return graph


def first_graph(ledger: Ledger, root: str, most: int = FIRST_NODES) -> Graph:
    """The graph as the page opens: a step down, then up as far as `most` nodes allow."""
    graph = Graph(root)
    graph.add(ledger.lineage_step(root, Direction.DOWN, limit=min(NEIGHBOURS, most // 4), far_limit=PORTS))
    waiting, steps = deque([root]), 0
    while waiting and steps < _DEEP and len(graph.nodes) < most:
        node = waiting.popleft()
        step = ledger.lineage_step(node, Direction.UP, limit=NEIGHBOURS // 4, far_limit=PORTS)
        fresh = [a for a in step.artifacts if a not in graph.nodes]
        graph.add(step)
        waiting.extend(fresh)
        steps += 1
    return graph


@dataclass(frozen=True)
class Branch:
    """A run beside an artifact in the tree, with the artifacts on its other side."""

    run: LineageRun
    name: str
    port: str
    artifacts: tuple[tuple[str, LineageArtifact, int], ...]  # port, artifact, how many runs lie beyond it
    hidden: int
    reused: int


@dataclass(frozen=True)
class Tree:
    """One level of the tree: the runs beside an artifact."""

    node: str
    direction: Direction
    branches: tuple[Branch, ...]
    more: int
    next: int


def tree(ledger: Ledger, artifact_id: str, direction: Direction, offset: int = 0) -> Tree:
    """The branches below an artifact, `NEIGHBOURS` at a time."""
    step = ledger.lineage_step(artifact_id, direction, offset=offset, limit=NEIGHBOURS, far_limit=PORTS)
    near = "output" if direction is Direction.UP else "input"
    branches = []
    for run_id in sorted(step.runs, reverse=True):
        mine = [e for e in step.edges if e.run_id == run_id]
        ports = [(e.name, step.artifacts[e.artifact_id]) for e in mine if e.role != near]
        degree = step.degrees[run_id]
        all_ports = degree.up if direction is Direction.UP else degree.down
        branches.append(
            Branch(
                run=step.runs[run_id], name=step.names[run_id],
                port=next((e.name for e in mine if e.role == near), ""),
                artifacts=tuple((name, a, _beyond(step, a.artifact_id)) for name, a in ports),
                hidden=all_ports - len(ports), reused=step.reused.get(run_id, 0),
            )
        )  # fmt: skip
    return Tree(artifact_id, direction, tuple(branches), step.more, step.offset + step.shown)


def _beyond(step: LineageStep, artifact_id: str) -> int:
    degree = step.degrees[artifact_id]
    return degree.up if step.direction is Direction.UP else degree.down
