import os
from pathlib import Path

import pytest

# Deterministic, quiet, and sized for small machines; children inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Golden numbers made with the reference implementations (`M4V_ORACLES`)."""
    path = Path(os.environ.get("M4V_ORACLES", REPOSITORY.parent / "shared" / "oracles"))
    if not path.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"golden fixtures are missing at {path}; set M4V_ORACLES")
        pytest.skip(f"golden fixtures are not at {path}; set M4V_ORACLES to run these tests")
    return path
