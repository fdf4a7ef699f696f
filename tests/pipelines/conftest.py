from pathlib import Path

import pytest
from published_weights import write_published


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with a tiny transformer in the published form."""
    return write_published(tmp_path / "published")
