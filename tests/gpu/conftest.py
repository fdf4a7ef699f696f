"""What a GPU's libraries read once in a process, set before the first test of one."""

import os
from collections.abc import Iterator

import pytest
from triton_interpreter import mend

if os.environ.get("TRITON_INTERPRET") == "1":
    mend()


@pytest.fixture(scope="session", autouse=True)
def cublas_workspace() -> Iterator[None]:
    """Without it torch's deterministic mode refuses products, also in tests that set it later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield
