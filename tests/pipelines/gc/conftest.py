"""Fixtures: a ledger of each kind with a local store, and one on S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "channels"))

from channel_house import House

from pipelines.ledger import Ledger
from pipelines.store import ArtifactStore


@pytest.fixture(params=["sqlite", "postgres", "s3"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    url = str(request.getfixturevalue("postgres_ledger" if request.param == "postgres" else "sqlite_ledger"))
    store = str(tmp_path / "home" / "store")
    if request.param == "s3":
        store = str(request.getfixturevalue("s3_root"))
    with Ledger.open(url) as ledger:
        yield House(ledger, ArtifactStore(store), tmp_path / "staging", url)
