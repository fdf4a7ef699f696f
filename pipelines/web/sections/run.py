"""The run itself: lineage graph, timings, how to reproduce it, credits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from m4v.core.asset_catalog import PACKAGES, asset_file
from m4v.core.config import parse
from m4v.weights import catalogue
from m4v.weights.config import WeightsConfig
from pipelines import stages
from pipelines.spec import load_function, load_object
from pipelines.web.facts import EdgeFacts, NodeFacts, RunFacts
from pipelines.web.graph_layout import BOX_HEIGHT, BOX_WIDTH, GraphLayout, lay_out

WEIGHTS = stages.WEIGHTS.name
_STATUS_WORDS = {
    "hit": "reused", "ran": "ran", "failed": "failed", "blocked": "blocked", "drained": "drained",
    "pending": "this page",
}  # fmt: skip


@dataclass(frozen=True)
class NodeView:
    """A stage with what went in and came out. `share` of the longest stage's time, for its bar."""

    facts: NodeFacts
    status_words: str
    inputs: tuple[EdgeFacts, ...]
    config_json: str
    metrics: tuple[tuple[str, str], ...]
    share: float


@dataclass(frozen=True)
class Credit:
    what: str
    licence: str
    credit: str


@dataclass(frozen=True)
class RunView:
    facts: RunFacts
    nodes: tuple[NodeView, ...]
    layout: GraphLayout
    box: tuple[int, int]
    total_s: float
    spent_s: float
    recipe_yaml: str
    host: tuple[tuple[str, str], ...]
    models: tuple[Credit, ...]


def gather(facts: RunFacts) -> RunView:
    longest = max((n.duration_s or 0.0 for n in facts.nodes), default=0.0)
    return RunView(
        facts=facts,
        nodes=tuple(_node(n, facts.edges, longest) for n in facts.nodes),
        layout=lay_out([n.node_id for n in facts.nodes], [(e.source, e.target) for e in facts.edges]),
        box=(BOX_WIDTH, BOX_HEIGHT),
        total_s=sum(n.duration_s or 0.0 for n in facts.nodes),
        spent_s=sum(n.seconds or 0.0 for n in facts.nodes),
        recipe_yaml=yaml.safe_dump(json.loads(json.dumps(facts.resolved)), sort_keys=False, allow_unicode=True)
        if facts.resolved
        else "",
        host=tuple((k, str(v)) for k, v in facts.host.items() if isinstance(v, str | int | float)),
        models=_models(facts.nodes),
    )


def _node(node: NodeFacts, edges: Sequence[EdgeFacts], longest: float) -> NodeView:
    metrics = [(k, _short(v)) for k, v in node.metrics.items() if isinstance(v, str | int | float)]
    return NodeView(
        facts=node,
        status_words=_STATUS_WORDS.get(node.status, node.status),
        inputs=tuple(e for e in edges if e.target == node.node_id),
        config_json=json.dumps(node.config, indent=2, ensure_ascii=False),
        metrics=tuple(metrics),
        share=(node.duration_s or 0.0) / longest if longest > 0 else 0.0,
    )  # fmt: skip


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _models(nodes: Sequence[NodeFacts]) -> tuple[Credit, ...]:
    """Third-party models of the run: packaged ones by the stages' declarations, imported ones by their nodes."""
    specs = {spec.name: spec for spec in stages.ALL}
    packages: set[str] = set()
    for node in nodes:
        spec = specs.get(node.stage)
        if spec is None or spec.weights is None:
            continue
        config = parse(load_object(spec.config_model), node.config, f"facts of {node.node_id}")
        packages |= {asset_file(name).package for name in load_function(spec.weights)(config)}
    imported = [parse(WeightsConfig, n.config, f"facts of {n.node_id}").entry for n in nodes if n.stage == WEIGHTS]
    return tuple(
        Credit(f"{p.requirement} {p.version}", p.licence, p.credit)
        for p in sorted((PACKAGES[name] for name in packages), key=lambda p: p.requirement)
    ) + tuple(
        Credit(e.name, e.licence or "not stated", f"{e.purpose}; {e.hub or e.address}")
        for e in map(catalogue.entry, sorted(set(imported)))
    )
