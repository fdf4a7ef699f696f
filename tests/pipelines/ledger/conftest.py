from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_scenario import Scenario

from pipelines.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh ledger database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    return str(request.getfixturevalue("postgres_ledger"))


@pytest.fixture
def scenario(ledger_url: str) -> Iterator[Scenario]:
    with Ledger.open(ledger_url) as ledger:
        yield Scenario(ledger, ledger_url)


@pytest.fixture
def ledger(scenario: Scenario) -> Ledger:
    return scenario.ledger
