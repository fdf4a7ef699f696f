"""The lineage graph amid thousands of artifacts: every step is quick, the drawing stays small, the way stays lit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser_pages import until
from playwright.sync_api import Browser, Page
from subject_pages import Visitor, serving
from wide_lineage import WideLineage, build

MOST = 200  # nodes of a drawing
STEP_S, BLOCKED_S = 10.0, 5.0  # on a machine of thirty busy processes; a tenth of it on a free one
SMALL, CHILDREN = (200, 640), 82
RUNG = 6  # steps from a checkpoint to the sources of its dataset
_LINEAGE = "document.getElementById('lineage-graph').lineage"
_WATCH = """() => { window.longest = 0; new PerformanceObserver(list => list.getEntries().forEach(
  e => { window.longest = Math.max(window.longest, e.duration); })).observe({ type: 'longtask', buffered: true }); }"""


@dataclass
class Walk:
    """Expands nodes of an open graph, and keeps how long each step took in the browser and its answers on the way."""

    page: Page
    steps_s: list[float] = field(default_factory=list)
    answers_ms: list[float] = field(default_factory=list)
    most: int = 0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("requestfinished", self._answered)

    def _answered(self, request: Any) -> None:
        if "/lineage/step" in request.url:
            self.answers_ms.append(request.timing["responseEnd"] - request.timing["requestStart"])

    def graph(self, expression: str) -> Any:
        return self.page.evaluate(f"(({{cy, expand, choose, left}}) => {expression})({_LINEAGE})")

    def expand(self, node: str, direction: str) -> None:
        began = time.perf_counter()
        self.graph(f"expand('{node}', '{direction}')")
        self.steps_s.append(time.perf_counter() - began)
        self.most = max(self.most, self.graph("cy.nodes(\"[type != 'more']\").length"))
        self.told.append(self.page.locator("#chosen").inner_text())
        assert "could not" not in self.told[-1]

    def up_to(self, source: str) -> None:
        """Up the line, rung by rung, to the far end of it."""
        for _ in range(2000):
            if self.graph(f"cy.getElementById('{source}').nonempty()"):
                return
            self.expand(self.graph(_HIGHEST), "up")
        pytest.fail("the far end was not reached")

    def walked(self) -> str:
        slow, longest = max(self.steps_s), self.page.evaluate("window.longest")
        mean = sum(self.steps_s) / len(self.steps_s)
        return (
            f"{len(self.steps_s)} steps, mean {1e3 * mean:.0f} ms, slowest {1e3 * slow:.0f} ms; answers at most "
            f"{max(self.answers_ms):.0f} ms; page blocked at most {longest:.0f} ms; at most {self.most} nodes"
        )


# Of what was made from something that is not shown, the one that lies farthest up.
_HIGHEST = """cy.nodes("[type = 'artifact'][kind != 'source'], [type = 'run']").filter(n => left(n, 'up'))
  .min(n => n.position('x')).ele.id()"""


@pytest.fixture(params=[SMALL, pytest.param((5000, 5000), marks=pytest.mark.deep)], ids=["small", "ten-thousand"])
def wide(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[WideLineage, str]]:
    made = build(tmp_path, *request.param)
    with serving(tmp_path) as address:
        yield made, address


def test_a_wide_and_deep_lineage_stays_usable(
    browser: Browser, wide: tuple[WideLineage, str], capsys: pytest.CaptureFixture[str]
) -> None:
    made, address = wide
    visitor = Visitor(browser, address)
    page = visitor.open(f"/artifacts/{made.checkpoint}")
    until(page, "document.getElementById('lineage-graph').dataset.ready === 'true'")
    page.evaluate(_WATCH)
    walk = Walk(page)
    children: set[str] = set()
    for _ in range(6):  # 25 of its children at a time, each with what lies beside it
        walk.expand(made.checkpoint, "down")
        children |= set(walk.graph(f"cy.getElementById('{made.checkpoint}').outgoers('node[^place]').map(n => n.id())"))
    if made.artifacts < 2000:
        assert len(children) == CHILDREN  # what was folded away came back
    assert any("folded away" in text for text in walk.told)
    assert walk.graph(f"cy.getElementById('{made.checkpoint}').outgoers('node[type = \"run\"]').length") >= 25
    _keep(page, "wide-down")
    walk.up_to(made.first)
    walk.graph(f"choose('{made.first}', true)")
    page.wait_for_timeout(200)
    steps = walk.graph("cy.edges('.lit').map(e => e.data('steps') || 1).reduce((a, b) => a + b, 0)")
    assert steps > RUNG
    assert f"{steps} steps from this artifact" in page.locator("#chosen").inner_text()
    assert walk.graph("cy.nodes('.lit').map(n => n.id())").count(made.checkpoint) == 1
    _keep(page, "wide-up")
    with capsys.disabled():
        print(f"\n{made.artifacts} artifacts: {walk.walked()}")
    assert walk.most <= MOST
    assert max(walk.steps_s) < STEP_S
    assert page.evaluate("window.longest") < 1e3 * BLOCKED_S
    assert visitor.complaints == []
    assert visitor.elsewhere == []
    visitor.close()


def _keep(page: Page, name: str) -> None:
    if "M4V_SCREENSHOTS" in os.environ:
        page.locator(".lineage").screenshot(path=Path(os.environ["M4V_SCREENSHOTS"]) / f"{name}.png")
