"""A ledger of each kind; scenarios and clips come from the ledger's own tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))

from ledger_scenario import Scenario

from pipelines.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgres"])
def scenario(request: pytest.FixtureRequest) -> Iterator[Scenario]:
    url = str(request.getfixturevalue(f"{request.param}_ledger"))
    with Ledger.open(url) as ledger:
        yield Scenario(ledger, url)
