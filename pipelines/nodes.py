"""Which nodes of a cluster are left out: those that failed too often of late. Failures and exclusions are recorded."""

from __future__ import annotations

from pipelines.launchers import Ending, Launcher
from pipelines.ledger import Ledger
from pipelines.ledger.supervision import EXCLUDED


class NodeHealth:
    """The ledger's memory of nodes, for one launcher."""

    def __init__(self, ledger: Ledger, launcher: Launcher) -> None:
        self._ledger, self._launcher = ledger, launcher

    def failed(self, attempt_id: str, ending: Ending) -> None:
        """Remember the nodes that an ending blames."""
        for node in ending.nodes:
            self._ledger.record_node_failure(self._launcher.name, node, attempt_id, ending.message)

    def excluded(self, attempt_id: str) -> tuple[str, ...]:
        """The nodes that the attempt must not use; they and why are recorded with it."""
        policy = self._launcher.nodes
        if policy is None:
            return ()
        failures = self._ledger.node_failures(self._launcher.name, policy.days)
        worst = {node: reasons for node, reasons in failures.items() if len(reasons) >= policy.failures}
        if worst:
            facts = {node: {"failures": len(reasons), "last": reasons[-1]} for node, reasons in sorted(worst.items())}
            self._ledger.record_supervision(attempt_id, EXCLUDED, {"nodes": facts, "within_days": policy.days})
        return tuple(sorted(worst))
