"""Supervision in the ledger: events of attempts, and the failures of nodes, on both databases."""

import pytest

from m4v.core.errors import InputError
from pipelines.ledger.supervision import ATTACHED, HUNG, SUBMITTED


def test_events_of_attempts_and_failures_of_nodes(ledger):
    claim = ledger.claim("ab" * 32, "test")
    first = ledger.begin_attempt(claim, stage="s", work_dir="w", log_path="l", launcher="slurm")
    second = ledger.begin_attempt(claim, stage="s", work_dir="w", log_path="l", launcher="slurm")
    ledger.record_supervision(first, SUBMITTED, {"job_id": "7", "exclude": ["n_1"]})
    ledger.record_supervision(second, ATTACHED, {"job_id": "7", "submitted_by": first})
    found = ledger.supervision([second, first])
    assert [(e.kind, e.subject) for e in found] == [(SUBMITTED, first), (ATTACHED, second)]
    assert found[0].payload == {"job_id": "7", "exclude": ["n_1"]}
    assert ledger.supervision([]) == []
    for node, reason in (("n_1", "killed"), ("nx1", "Xid 79"), ("n_1", "hung")):
        ledger.record_node_failure("slurm", node, first, reason)
    ledger.record_node_failure("slurm_b", "n9", first, "elsewhere")
    assert ledger.node_failures("slurm", 1.0) == {"n_1": ["killed", "hung"], "nx1": ["Xid 79"]}
    assert ledger.node_failures("slurm", 0.0) == {}
    with pytest.raises(InputError):
        ledger.record_supervision(first, "attempt.finished", {})
    with pytest.raises(InputError):
        ledger.record_supervision("nobody", HUNG, {})
    report = ledger.verify_chain()
    assert (report.ok, report.stale) == (True, ())
