"""A server over a reviewed home in a thread, and a visitor who clicks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from browser_pages import PATIENCE_MS
from playwright.sync_api import Browser, BrowserContext, Page

from pipelines.web.app import create_app
from pipelines.workspace import Workspace


@contextmanager
def serving(home: Path, *, read_only: bool = False) -> Iterator[str]:
    """The page of a home on a free port; gives its address without a final slash."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(Workspace.open(home), read_only=read_only)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


class Visitor:
    """A page under watch: whatever it complains about or asks of elsewhere is kept."""

    def __init__(self, browser: Browser, address: str, name: str = "", **context: object) -> None:
        self.address = address
        headers = {"X-User": name} if name else {}
        size = {"width": 1280, "height": 900}
        self.context: BrowserContext = browser.new_context(**{"viewport": size, **context})  # type: ignore[arg-type]
        if headers:
            self.context.set_extra_http_headers(headers)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{self.page.url}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(url)

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.address}{path}")
        return self.page

    def click(self, text: str, *, within: str = "main", exact: bool = True) -> None:
        """Follow the first link or press the first button of this name."""
        place = self.page.locator(within)
        found = place.get_by_role("link", name=text, exact=exact)
        if found.count() == 0:
            found = place.get_by_role("button", name=text, exact=exact)
        found.first.click()
        self.page.wait_for_load_state("load")

    def says(self, *texts: str) -> None:
        shown = " ".join(self.page.locator("main").inner_text().split())
        for text in texts:
            assert text in shown, f"{text!r} is not on {self.page.url}: {shown[:3000]}"

    def close(self) -> None:
        self.context.close()
