from __future__ import annotations

from collections.abc import Iterator

import pytest
from ledger_scenario import Scenario

from pipelines.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A fresh ledger database of each kind."""
    return str(request.getfixturevalue(f"{request.param}_ledger"))


@pytest.fixture
def scenario(ledger_url: str) -> Iterator[Scenario]:
    with Ledger.open(ledger_url) as ledger:
        yield Scenario(ledger, ledger_url)


@pytest.fixture
def ledger(scenario: Scenario) -> Ledger:
    return scenario.ledger
