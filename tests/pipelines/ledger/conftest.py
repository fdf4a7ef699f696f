from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_scenario import Scenario

from pipelines.ledger import Ledger
from pipelines.ledger.database import parse_url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Any) -> str:
    """Name of a PostgreSQL database with the ledger's schema, to copy."""
    url = postgres_server.create()
    Ledger.open(url).close()
    return parse_url(url).database or ""


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh ledger database of each kind."""
    if request.param == "sqlite":
        yield str(tmp_path / "ledger.sqlite")
        return
    server = request.getfixturevalue("postgres_server")
    url = server.create(request.getfixturevalue("migrated_postgres"))
    yield url
    server.drop(url)


@pytest.fixture
def scenario(ledger_url: str) -> Iterator[Scenario]:
    with Ledger.open(ledger_url) as ledger:
        yield Scenario(ledger, ledger_url)


@pytest.fixture
def ledger(scenario: Scenario) -> Ledger:
    return scenario.ledger
