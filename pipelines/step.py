"""What is known of a node while it executes."""

from __future__ import annotations

from collections.abc import Mapping

from m4v.core.errors import M4VError
from pipelines.keys import KeyRecord
from pipelines.launching import AttemptError
from pipelines.lookup import Hit, Output
from pipelines.outcomes import NodeOutcome, NodeStatus
from pipelines.spec import StageNode


class Step:
    """A node, its key record once its inputs are known, and why it runs; makes its outcomes."""

    def __init__(self, node: StageNode) -> None:
        self.node = node
        self.record: KeyRecord | None = None
        self.why = ""

    @property
    def known_record(self) -> KeyRecord:
        assert self.record is not None
        return self.record

    @property
    def key(self) -> str:
        return self.known_record.stage_key

    def outcome(
        self,
        status: NodeStatus,
        reason: str,
        run_id: str | None = None,
        attempt_id: str | None = None,
        outputs: Mapping[str, Output] | None = None,
    ) -> NodeOutcome:
        key = self.record.stage_key if self.record else None
        return NodeOutcome(self.node.id, status, reason, 0.0, run_id, key, attempt_id, outputs or {})

    def hit(self, found: Hit) -> NodeOutcome:
        return self.outcome(NodeStatus.HIT, found.reason, found.run.run_id, None, found.outputs)

    def failed(self, status: NodeStatus, error: M4VError) -> NodeOutcome:
        attempt, log = (error.attempt_id, str(error.log)) if isinstance(error, AttemptError) else (None, None)
        key = self.record.stage_key if self.record else None
        return NodeOutcome(
            self.node.id, status, self.why, 0.0, None, key, attempt, {}, error.message, error.exit_class, log
        )
