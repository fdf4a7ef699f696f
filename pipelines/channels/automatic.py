"""Promotion by a recipe: the run asks for it once its gate has passed, in its own name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from m4v.core.errors import M4VError
from m4v.core.storage import Storage
from pipelines.access import run_actor
from pipelines.channels.gates import CANDIDATE, GATE, GENERATE, MEASURING
from pipelines.channels.promote import Outcome, promote
from pipelines.ledger import Ledger
from pipelines.outcomes import NodeOutcome
from pipelines.settings import Settings
from pipelines.spec import StageNode


def judged_checkpoint(nodes: Sequence[StageNode], outcomes: Mapping[str, NodeOutcome]) -> str | None:
    """The checkpoint that the gate of a run judged; None for a run without a gate, or that did not get to it."""
    by_id = {node.id: node for node in nodes}
    for node in nodes:
        if node.spec.name == GATE and node.id in outcomes:
            scores, _ = node.inputs[CANDIDATE]
            if by_id[scores].spec.name in MEASURING:
                samples, _ = by_id[scores].inputs["samples"]
                if by_id[samples].spec.name == GENERATE:
                    source, output = by_id[samples].inputs["checkpoint"]
                    return outcomes[source].outputs[output].artifact_id
    return None


def gate_refused(nodes: Sequence[StageNode], outcomes: Mapping[str, NodeOutcome]) -> bool:
    """Whether a gate of a run said no."""
    found = [outcomes.get(node.id) for node in nodes if node.spec.name == GATE]
    return any(not _passed(outcome) for outcome in found if outcome is not None and outcome.status.has_outputs)


def _passed(outcome: NodeOutcome) -> bool:
    output = next(iter(outcome.outputs.values()))
    return bool(json.loads(Storage(output.uri).read_bytes("gate.json"))["passed"])


def promote_run(ledger: Ledger, settings: Settings, pipeline_run_id: str, checkpoint: str, channel: str) -> str:
    """Promote what a run's gate let through, or ask for the approvals; returns what became of it, in words.

    A promotion that is refused does not undo the run: the reason is told, and a person decides.
    """
    try:
        done = promote(
            ledger, settings, run_actor(pipeline_run_id), checkpoint, channel,
            reason="its gate passed", pipeline_run_id=pipeline_run_id,
        )  # fmt: skip
    except M4VError as error:
        return f"not promoted to {channel}: {error.what}"
    if done.request is not None:
        waits = done.request.approvals_needed - len(done.request.approved_by)
        count = f"{waits} approval" + "s" * (waits != 1)
        return f"promotion to {channel} waits for {count}: m4v runs approve {done.request.request_id}"
    assert done.entry is not None
    if done.outcome is Outcome.UNCHANGED:
        return f"{channel} names this checkpoint already"
    return f"promoted to {channel}, entry {done.entry.seq}"
