"""A page under watch in headless Chromium, and how the page tests wait and measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

PATIENCE_MS = 300_000  # on a machine of many busy processes; Playwright's own is a tenth of it

OVERFLOWING = """
Array.from(document.querySelectorAll('body *')).filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest('.scroll, nav, pre, svg, .skip, .canvas > *');
}).map(e => e.tagName + '.' + e.className)
"""


class Watched:
    """A page with everything it complained about and asked for."""

    def __init__(self, browser: Browser, file: Path, **context: object) -> None:
        self.page: Page = browser.new_context(**context).new_page()  # type: ignore[arg-type]
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith("data:") else self.requests.append(r.url))
        self.url = file.as_uri()
        self.page.goto(self.url)

    def shown(self) -> list[str]:
        return self.page.eval_on_selector_all(".clip:not([hidden])", "nodes => nodes.map(n => n.dataset.fate)")

    def choose(self, name: str, value: str) -> None:
        self.page.select_option(f"select[name={name}]", value)


def overflowing(page: Page) -> dict[str, list[str]]:
    """What is wider than a wide and a narrow window, in light and dark."""
    found = {}
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            names = page.evaluate(OVERFLOWING)
            if wide or names:
                found[f"{width} {scheme}"] = names
    return found


def until(page: Page, expression: str) -> None:
    """Wait for an expression to hold; Playwright's own waiting evaluates text in the page, which its policy forbids."""
    for _ in range(6000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"did not come true: {expression}")
