"""A home whose pages are read, made once for all files here."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from served_home import ServedHome, build

from pipelines.web.app import create_app


@pytest.fixture(scope="session")
def read_home(tmp_path_factory: pytest.TempPathFactory) -> ServedHome:
    return build(tmp_path_factory.mktemp("served") / "home")


@pytest.fixture(scope="session")
def reader(read_home: ServedHome) -> Iterator[TestClient]:
    """A visitor of its pages who does not follow redirections."""
    with TestClient(create_app(read_home.workspace), follow_redirects=False) as client:
        yield client
