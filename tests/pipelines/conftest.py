from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, open_bench
from published_weights import write_published


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workspace in which small pipelines of real stage processes run."""
    with open_bench(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def switches(tmp_path: Path) -> Path:
    """A directory by which those stages are told what to do, and where they log their work."""
    directory = tmp_path / "switches"
    directory.mkdir()
    return directory


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with a tiny transformer in the published form."""
    return write_published(tmp_path / "published")
