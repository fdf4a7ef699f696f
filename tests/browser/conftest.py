import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from browser_pages import PATIENCE_MS
from playwright.sync_api import Browser, PlaywrightContextManager, sync_playwright
from reviewed_home import ReviewedHome, build


class Chromium:
    """One browser for all tests here that follow each other. It goes when another folder's tests begin: Playwright
    leaves a running event loop in the thread, beside which theirs could not start one."""

    def __init__(self) -> None:
        self._open: tuple[PlaywrightContextManager, Browser] | None = None

    def get(self) -> Browser:
        if self._open is None:
            executable = shutil.which("chromium") or shutil.which("chromium-browser")
            if executable is None:
                pytest.fail("Chromium is not installed; run `make browser`")
            manager = sync_playwright()
            arguments = ["--no-sandbox", "--disable-gpu"]
            found = manager.__enter__().chromium.launch(
                executable_path=executable, args=arguments, headless=True, timeout=PATIENCE_MS
            )
            self._open = manager, found
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            (manager, found), self._open = self._open, None
            found.close()
            manager.__exit__()


CHROMIUM = Chromium()


@pytest.fixture
def browser() -> Browser:
    return CHROMIUM.get()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        CHROMIUM.close()


@pytest.fixture(scope="session")
def reviewed(micro_home: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> ReviewedHome:
    """The home that reviewers look at, made once for all workers; tests that change it take a copy."""

    def make(place: Path) -> None:
        found = build(micro_home, place / "home")
        (place / "reviewed.json").write_text(json.dumps(asdict(found), default=str))

    told = json.loads((made_once("reviewed", make) / "reviewed.json").read_bytes())
    return ReviewedHome(**{**told, "home": Path(told["home"])})
