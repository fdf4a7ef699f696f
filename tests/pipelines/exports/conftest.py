from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from exports_history import HttpSink, small_history

from pipelines.ledger import Ledger
from pipelines.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty home that the environment names."""
    for variable in ("M4V_STORE", "M4V_LEDGER", "M4V_SETTINGS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("M4V_HOME", str(tmp_path / "home"))
    return Workspace.open()


@pytest.fixture
def ledger(workspace: Workspace) -> Iterator[Ledger]:
    with Ledger.open(workspace.ledger_url) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def either_ledger(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Ledger]:
    url = request.getfixturevalue("postgres_ledger") if request.param == "postgres" else workspace.ledger_url
    with Ledger.open(url) as opened:
        yield opened


@pytest.fixture
def history(ledger: Ledger) -> dict[str, str]:
    return small_history(ledger)


@pytest.fixture
def http_sink() -> Iterator[HttpSink]:
    server = HttpSink()
    yield server
    server.close()
