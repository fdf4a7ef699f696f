import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
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
def reviewed(micro_home: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> ReviewedHome:
    """The home that reviewers look at, made once for all workers; tests that change it take a copy."""

    def make(place: Path) -> None:
        found = build(micro_home, place / "home")
        (place / "reviewed.json").write_text(json.dumps(asdict(found), default=str))

    told = json.loads((made_once("reviewed", make) / "reviewed.json").read_bytes())
    return ReviewedHome(**{**told, "home": Path(told["home"])})
