"""Facts from the ledger for the report: what ran, what was reused and why, how long it took, what came of what.

They are passed to the report stage as `request.attachments["facts"]` and are not in its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from m4v.core.errors import InputError
from pipelines.environment import host_facts
from pipelines.ledger import Ledger
from pipelines.ledger.types import iso
from pipelines.outcomes import NodeOutcome
from pipelines.spec import StageNode

FACTS_SCHEMA = 1


def collect_facts(
    ledger: Ledger,
    recipe: str,
    resolved: Mapping[str, object],
    pipeline_run_id: str,
    nodes: Iterable[StageNode],
    outcomes: Mapping[str, NodeOutcome],
) -> dict[str, object]:
    """JSON facts of a pipeline run so far. Per node: `seconds` of this run, `work_seconds` of the attempt
    that made its outputs (the same unless it was a cache hit). `edges` are the lineage between nodes."""
    nodes = list(nodes)
    return {
        "schema_version": FACTS_SCHEMA,
        "recipe": recipe,
        "resolved": dict(resolved),
        "pipeline_run_id": pipeline_run_id,
        "started_at": iso(ledger.pipeline_run(pipeline_run_id).started_at),
        "host": host_facts(),
        "nodes": [_node_facts(ledger, node, outcomes.get(node.id)) for node in nodes],
        "edges": [edge for node in nodes for edge in _edges(node, outcomes)],
    }


def _node_facts(ledger: Ledger, node: StageNode, outcome: NodeOutcome | None) -> dict[str, object]:
    facts: dict[str, object] = {
        "node_id": node.id,
        "stage": node.spec.name,
        "config": node.config.canonical(),
        "seed": node.seed,
        "ranks": node.resources.ranks,
        "status": "pending" if outcome is None else str(outcome.status),
    }
    if outcome is None:
        return facts
    facts |= outcome.to_json()
    if outcome.run_id is None:
        return facts
    run = ledger.run(outcome.run_id)
    facts |= {"committed_at": iso(run.committed_at), "metrics": run.metrics, "environment": _seen(run.environment)}
    try:
        attempt = ledger.attempt(run.attempt_id)
    except InputError:
        return facts
    return {**facts, "work_seconds": attempt.duration_s, "attempt_number": attempt.number}


def _seen(environment: Mapping[str, object]) -> dict[str, object]:
    """Without the recorded request: the report tells what ran, the ledger how to run it again."""
    return {name: value for name, value in environment.items() if name != "request"}


def _edges(node: StageNode, outcomes: Mapping[str, NodeOutcome]) -> list[dict[str, object]]:
    edges: list[dict[str, object]] = []
    for name, (source, output) in node.inputs.items():
        made = outcomes[source].outputs.get(output) if source in outcomes else None
        edges.append(
            {
                "from": source,
                "to": node.id,
                "input": name,
                "artifact_id": made.artifact_id if made else None,
                "kind": str(made.kind) if made else None,
            }
        )
    return edges
