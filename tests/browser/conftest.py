import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from reviewed_home import ReviewedHome, build


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.fail("Chromium is not installed; run `make browser`")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"], headless=True)
        yield found
        found.close()


@pytest.fixture(scope="session")
def reviewed(micro_home: Path, tmp_path_factory: pytest.TempPathFactory) -> ReviewedHome:
    """The home that reviewers look at; tests that change it take a copy."""
    return build(micro_home, tmp_path_factory.mktemp("reviewed") / "home")
