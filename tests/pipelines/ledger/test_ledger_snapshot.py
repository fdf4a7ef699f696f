"""One snapshot for many questions: they share a transaction and see one state of the ledger."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from m4v.core.errors import InputError
from pipelines.ledger import Ledger


def recipes(ledger: Ledger) -> list[str]:
    return sorted(run.recipe for run in ledger.pipeline_runs())


def test_what_is_written_meanwhile_is_not_seen(ledger: Ledger) -> None:
    ledger.begin_pipeline_run("before", {})
    with ThreadPoolExecutor(1) as other, ledger.snapshot(), ledger.snapshot():  # one within another is the same
        assert recipes(ledger) == ["before"]
        ledger.begin_pipeline_run("meanwhile", {})
        assert recipes(ledger) == ["before"]
        assert other.submit(recipes, ledger).result() == ["before", "meanwhile"], "of this thread alone"
    assert recipes(ledger) == ["before", "meanwhile"]


def test_questions_share_a_transaction_that_ends_with_a_fault_too(ledger: Ledger) -> None:
    begun: list[object] = []
    event.listen(ledger._db.engine, "begin", begun.append)
    with ledger.snapshot():
        for _ in range(3):
            recipes(ledger)
    assert len(begun) == 1
    with pytest.raises(InputError), ledger.snapshot():
        ledger.attempt("unknown")
    ledger.begin_pipeline_run("after", {})
    assert recipes(ledger) == ["after"]
    assert len(begun) == 4
