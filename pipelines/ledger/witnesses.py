"""Which immutable rows an event answers for: their digests stand in its payload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.ledger import schema
from pipelines.ledger.schema_channels import Approval, Pin, PromotionRequest
from pipelines.ledger.schema_takedown import DrainRequest, TakedownClips, TakedownStep, Withdrawal

# Which rows an event answers for, and where in its payload their digests stand.
_WITNESSED: dict[type[schema.Base], str] = {
    schema.Artifact: "artifact.recorded",
    schema.Attempt: "attempt.begun",
    schema.StageRun: "run.committed",
    schema.PipelineRun: "pipeline.begun",
    schema.Reuse: "pipeline.node",
    schema.Channel: "channel.moved",
    schema.Takedown: "takedown.requested",
    PromotionRequest: "promotion.requested",
    Approval: "promotion.decided",
    Pin: "artifact.pinned",
    DrainRequest: "drain.requested",
    TakedownClips: "takedown.clips",
    TakedownStep: "takedown.step",
    Withdrawal: "artifact.withdrawn",
}
RowKey = tuple[str, ...]
TABLES: tuple[type[schema.Base], ...] = (*_WITNESSED, schema.RunInput, schema.RunOutput)


def witnessed_by(event: schema.Event) -> Iterator[tuple[RowKey, str]]:
    """(table and primary key, digest) of every row that the event announced."""
    for table, kind in _WITNESSED.items():
        if event.kind != kind:
            continue
        payload: Any = event.payload
        match kind:
            case "artifact.recorded" | "artifact.withdrawn":
                yield (table.__tablename__, event.subject, payload["kind"]), payload["row"]
            case "pipeline.node":
                if "reuse" in payload:
                    yield (table.__tablename__, payload["reuse"]["reuse_id"]), payload["reuse"]["row"]
            case "takedown.clips":
                yield (table.__tablename__, event.subject, str(payload["number"])), payload["row"]
            case "takedown.step":
                yield (table.__tablename__, event.subject, payload["step"], payload["item"]), payload["row"]
            case "channel.moved":
                yield (table.__tablename__, event.subject, str(payload["seq"])), payload["row"]
            case "promotion.decided":
                yield (table.__tablename__, event.subject, payload["actor"]), payload["row"]
            case "artifact.pinned":
                yield (table.__tablename__, payload["pin_id"]), payload["row"]
            case _:
                yield (table.__tablename__, event.subject), payload["row"]
    if event.kind == "run.committed":
        for table, ports in ((schema.RunInput, "inputs"), (schema.RunOutput, "outputs")):
            for name, (artifact_id, artifact_kind) in event.payload[ports].items():
                yield (table.__tablename__, event.subject, name), f"{artifact_id} {artifact_kind}"
