"""Pages of runs and artifacts in headless Chromium: silent, offline, live, playing, expandable, usable by keyboard."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser_pages import PATIENCE_MS, overflowing, until
from playwright.sync_api import Browser, Page, Route

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines" / "web" / "app"))
sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines" / "ledger"))
from ledger_scenario import Scenario, artifact
from served_home import ServedHome, build

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.stage import Progress
from pipelines.ledger import Ledger
from pipelines.web.app import create_app

FANNED = 60  # runs that read one artifact
CHAIN = 30


@dataclass
class Served:
    home: ServedHome
    url: str
    popular: str  # an artifact that many runs read
    last: str  # the end of a long line


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = build(tmp_path_factory.mktemp("browser") / "home")
    popular, last = _wide_and_deep(home)
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(64)
    server = uvicorn.Server(uvicorn.Config(create_app(home.workspace), log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[bound]), daemon=True)
    thread.start()
    yield Served(home, f"http://127.0.0.1:{bound.getsockname()[1]}", popular, last)
    server.should_exit = True
    thread.join(10)


def _wide_and_deep(home: ServedHome) -> tuple[str, str]:
    """One artifact that many runs read, and a long line of checkpoints made one from another."""
    with Ledger.open(home.workspace.ledger_url) as ledger:
        scenario = Scenario(ledger, home.workspace.ledger_url)
        root = artifact("root", ArtifactKind.WEIGHTS)
        scenario.run(digest_json("root"), {"weights": root}, stage="weights")
        for n in range(FANNED):
            scenario.run(
                digest_json(["fan", n]),
                {"clips": artifact(f"fan{n}", ArtifactKind.CLIPS)},
                {"weights": root},
                stage="curate",
            )
        line = [root, *(artifact(f"line{n}", ArtifactKind.CHECKPOINT) for n in range(CHAIN))]
        for n in range(CHAIN):
            scenario.run(digest_json(["line", n]), {"checkpoint": line[n + 1]}, {"checkpoint": line[n]}, stage="train")
    return root.artifact_id, line[-1].artifact_id


class Visit:
    """A page under watch: what it complains about, and what it asks of anybody else."""

    def __init__(self, browser: Browser, served: Served, path: str, **context: Any) -> None:
        self.page: Page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(served.url) else self.foreign.append(r.url))
        self.page.goto(served.url + path)

    def close(self) -> None:
        assert self.complaints == []
        assert [u for u in self.foreign if not u.startswith("data:")] == []
        self.page.context.close()

    def graph(self, expression: str) -> Any:
        return self.page.evaluate(
            f"(({{cy, chosen}}) => {expression})(document.getElementById('lineage-graph').lineage)"
        )


def ready(visit: Visit) -> None:
    until(visit.page, "document.getElementById('lineage-graph').dataset.ready === 'true'")


def test_a_visitor_clicks_from_the_list_to_a_file(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, "/")
    page = visit.page
    page.click(f"a[href='/runs/{served.home.runs['done']}']")
    page.click("tr#stage-train\\.57f a[href^='/stage-runs/']")
    assert page.locator("h1").inner_text().startswith("train.57f")
    page.locator(".chart").first.hover(position={"x": 150, "y": 80})
    assert page.locator(".chart .readout").first.inner_text().startswith("step ")
    page.click(f"a[href='/artifacts/{served.home.artifact('train.57f')}']")
    page.click("a[href*='/files/metrics.jsonl']")
    page.locator("body", has_text='"grad_norm"').wait_for()  # the file's address is there before its text
    visit.close()


def test_filters_go_into_the_address_as_they_are_chosen(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, "/runs")
    with visit.page.expect_navigation():
        visit.page.select_option("select[name=status]", "failed")
    assert "status=failed" in visit.page.url
    assert visit.page.locator("tbody tr").count() == 1
    visit.page.get_by_text("Clear").click()
    assert visit.page.locator("tbody tr").count() >= 4
    visit.close()


def test_rows_and_stages_follow_a_run_at_work(browser: Browser, served: Served) -> None:
    run, attempt = served.home.runs["live"], served.home.attempts["train.live"]
    rows, one = Visit(browser, served, "/runs?recipe=films"), Visit(browser, served, f"/runs/{run}")
    rows.page.evaluate(f"document.getElementById('run-{served.home.runs['done']}').dataset.same = 'yes'")
    with Ledger.open(served.home.workspace.ledger_url) as ledger:
        ledger.heartbeat(attempt, Progress(done=77, total=120, unit="steps", note="loss 0.42"))
        for visit in (rows, one):
            until(visit.page, "document.body.innerText.includes('77 of 120 steps')")
        assert rows.page.evaluate(f"document.getElementById('run-{served.home.runs['done']}').dataset.same") == "yes"
        newer = ledger.begin_pipeline_run("films", {})
        until(rows.page, "document.getElementById('newer').innerText.startsWith('1 newer run')")
        ledger.finish_pipeline_run(newer, 0)
    for visit in (rows, one):
        visit.close()


def test_videos_play_and_can_be_wound(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.home.artifact('generate')}")
    visit.page.locator("video").first.scroll_into_view_if_needed()
    until(visit.page, "document.querySelector('video').readyState >= 1")
    assert abs(visit.page.evaluate("document.querySelector('video').duration") - 17 / 8) < 0.05
    visit.page.evaluate("document.querySelector('video').currentTime = 1.5")
    until(
        visit.page,
        "document.querySelector('video').readyState >= 2 && document.querySelector('video').currentTime === 1.5",
    )
    visit.page.evaluate("document.querySelector('video').play()")
    until(visit.page, "document.querySelector('video').currentTime > 1.6")
    visit.close()


def test_the_graph_opens_with_the_line_and_its_reuse(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.home.artifact('train.57f')}")
    ready(visit)
    kinds = visit.graph("cy.nodes('[type=\"artifact\"]').map(n => n.data('kind'))")
    assert {"checkpoint", "dataset", "clips", "source", "samples"} <= set(kinds)
    assert visit.graph("cy.edges('[type=\"reuse\"]').length") == 4
    visit.page.uncheck("#show-reuse")
    assert visit.graph("cy.nodes('[type=\"reuse\"]').filter(n => n.visible()).length") == 0
    source = served.home.artifact("source.films")
    visit.graph(f"document.getElementById('lineage-graph').lineage.choose('{source}')")
    assert visit.graph("cy.edges('.lit').length") >= 6  # source, curate, clips, encode, dataset, train
    assert "steps from this artifact" in visit.page.locator("#chosen").inner_text()
    visit.close()


def test_a_step_adds_a_bounded_number_and_says_what_is_left(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.popular}")
    ready(visit)
    first = visit.graph("cy.nodes('[type=\"run\"]').length")
    assert first < FANNED / 2
    visit.page.click("button[data-do=down]")
    until(
        visit.page,
        f"document.getElementById('lineage-graph').lineage.cy.nodes('[type=\"run\"]').length === {first + 25}",
    )
    left = FANNED + 1 - (first - 1) - 25  # the line begins here too; one run made the artifact itself
    assert f"{left} left to expand" in visit.page.locator("#chosen").inner_text()
    assert visit.graph("cy.nodes('[type=\"more\"]').map(n => n.data('label'))") == [f"{left} more"]
    visit.close()


def test_keys_walk_and_expand_and_the_address_keeps_it(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.last}")
    page = visit.page
    ready(visit)
    page.focus("#canvas")
    before = visit.graph("cy.nodes().length")
    for _ in range(60):  # left to where the first graph ends
        here = visit.graph("chosen()")
        page.keyboard.press("ArrowLeft")
        if visit.graph("chosen()") == here:
            break
    page.keyboard.press("u")
    until(page, f"document.getElementById('lineage-graph').lineage.cy.nodes().length > {before}")
    assert page.url.partition("#")[2].startswith("graph=up")
    expanded = visit.graph("cy.nodes().length")
    other = Visit(browser, served, page.url.removeprefix(served.url))
    ready(other)
    assert other.graph("cy.nodes().length") == expanded
    other.page.focus("#canvas")
    with other.page.expect_navigation():
        other.page.keyboard.press("o")
    for one in (visit, other):
        one.close()


def test_the_tree_says_the_same_and_unfolds_by_keyboard(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.home.artifact('train.57f')}")
    dataset = served.home.artifact("encode")
    entry = visit.page.locator(f".tree li:has(> .leaf a[href='/artifacts/{dataset}'])").first
    entry.locator("> details > summary").focus()
    visit.page.keyboard.press("Enter")
    below = entry.locator("> details > .below")
    below.locator(f"a[href='/stage-runs/{served.home.run_of('encode')}']").wait_for()
    visit.close()


def test_a_log_opens_at_its_end_and_grows(browser: Browser, served: Served) -> None:
    attempt = served.home.attempts["train.live"]
    visit = Visit(browser, served, f"/attempts/{attempt}")
    log = visit.page.locator("pre.log")
    at_its_end = "(e => e.scrollTop + e.clientHeight >= e.scrollHeight - 20)(document.querySelector('pre.log'))"
    until(visit.page, at_its_end)
    with (
        Ledger.open(served.home.workspace.ledger_url) as ledger,
        Path(ledger.attempt(attempt).log_path).open("a") as stream,
    ):
        stream.write("a line from now\n")
    until(visit.page, "document.querySelector('pre.log').innerText.includes('a line from now')")
    assert log.inner_text().count("a line from now") == 1
    until(visit.page, at_its_end)
    visit.close()


def test_nothing_overflows(browser: Browser, served: Served) -> None:
    home = served.home
    visit = Visit(browser, served, "/runs")
    for path in (
        "/runs", f"/runs/{home.runs['done']}", f"/stage-runs/{home.run_of('train.57f')}", "/artifacts",
        f"/artifacts/{home.artifact('generate')}", f"/attempts/{home.attempts['encode']}", "/runs/zzzz",
    ):  # fmt: skip
        visit.page.goto(served.url + path)
        assert overflowing(visit.page) == {}, path
    visit.complaints = [c for c in visit.complaints if "404" not in c]  # the browser's own word on the last page
    visit.close()


def test_without_scripts_everything_is_readable(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/artifacts/{served.home.artifact('train.57f')}", java_script_enabled=False)
    assert not visit.page.locator("#lineage-graph").is_visible()
    assert visit.page.locator(".tree").count() >= 2
    visit.page.goto(f"{served.url}/runs")
    visit.page.select_option("select[name=status]", "failed")
    visit.page.get_by_role("button", name="Filter").click()
    assert visit.page.locator("tbody tr").count() == 1
    visit.close()


def test_a_server_in_trouble_leaves_the_page_as_it_was(browser: Browser, served: Served) -> None:
    visit = Visit(browser, served, f"/runs/{served.home.runs['live']}")
    asked: list[str] = []

    def broken(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, body="<h1>Not reachable now</h1>", content_type="text/html")

    visit.page.route("**/live?*", broken)
    until(visit.page, "document.querySelector('h1') !== null")
    for _ in range(6000):
        if len(asked) >= 2:
            break
        visit.page.wait_for_timeout(50)
    assert len(asked) >= 2  # it goes on asking
    assert visit.page.locator("h1").inner_text().startswith("films")
    visit.complaints = [c for c in visit.complaints if "503" not in c]
    visit.close()
