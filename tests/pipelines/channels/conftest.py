"""Fixtures: a ledger of each kind with a store, in which checkpoints are made and judged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from channel_house import House

from pipelines.ledger import Ledger
from pipelines.store import ArtifactStore


@pytest.fixture(params=["sqlite", "postgres"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    url = str(request.getfixturevalue(f"{request.param}_ledger"))
    with Ledger.open(url) as ledger:
        yield House(ledger, ArtifactStore(str(tmp_path / "store")), tmp_path / "staging", url)
