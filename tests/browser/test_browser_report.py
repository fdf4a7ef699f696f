"""The report page in headless Chromium: silent, offline, playing, within the window, and usable."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_pages import Watched, overflowing, until
from playwright.sync_api import Browser

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines" / "web"))
from report_fixture import RunFixture

from pipelines.web import report

SECTIONS = [
    "generated", "scores", "training", "data", "reconstructions", "lineage", "timings", "reproduce", "credits",
]  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunFixture(tmp_path_factory.mktemp("run"))
    context = run.context()
    report.run(context)
    return context.output("report") / report.PAGE


@pytest.fixture
def desktop(browser: Browser, page_file: Path) -> Iterator[Watched]:
    watched = Watched(browser, page_file, viewport={"width": 1280, "height": 900})
    yield watched
    watched.page.context.close()


def test_page_is_silent_and_asks_nothing_of_the_network(desktop: Watched) -> None:
    desktop.page.wait_for_timeout(300)
    desktop.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    desktop.page.wait_for_timeout(300)
    assert desktop.complaints == []
    assert desktop.requests == [desktop.url]


def test_every_section_is_there_with_content(desktop: Watched) -> None:
    for name in SECTIONS:
        assert len(desktop.page.locator(f"#{name}").inner_text()) > 40, name
    assert desktop.page.locator("#verdict").inner_text() == "✓ Gate passed"
    assert desktop.page.locator("article.prompt").count() == 6
    assert desktop.page.locator("article.curve").count() == 5
    assert desktop.page.locator("a.node").count() == 17


def test_all_videos_decode_and_those_in_view_play(desktop: Watched) -> None:
    page = desktop.page
    until(page, "Array.from(document.querySelectorAll('video')).every(v => v.readyState >= 2)")
    durations = page.evaluate("Array.from(document.querySelectorAll('video')).map(v => v.duration)")
    assert len(durations) == 18
    assert all(abs(d - 17 / 8) < 0.02 for d in durations)
    page.locator("article.prompt").first.scroll_into_view_if_needed()
    until(page, "document.querySelector('article.prompt video').currentTime > 0.1")
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play all"
    assert page.evaluate("Array.from(document.querySelectorAll('video')).every(v => v.paused)")
    page.locator("article.prompt video").first.click()
    until(page, "Array.from(document.querySelectorAll('article.prompt:first-child video')).every(v => !v.paused)")


def test_nothing_plays_by_itself_for_who_wants_little_motion(browser: Browser, page_file: Path) -> None:
    calm = Watched(browser, page_file, reduced_motion="reduce")
    calm.page.wait_for_timeout(400)
    assert calm.page.evaluate("Array.from(document.querySelectorAll('video')).every(v => v.paused)")
    assert calm.page.locator("#play").inner_text() == "Play all"
    calm.page.context.close()


def test_nothing_overflows(browser: Browser, page_file: Path) -> None:
    watched = Watched(browser, page_file)
    assert overflowing(watched.page) == {}
    watched.page.context.close()


def test_lineage_shows_a_chosen_stage_by_mouse_and_keyboard(desktop: Watched) -> None:
    page = desktop.page
    page.locator('a.node[data-id="encode"]').click()
    visible = page.locator(".detail:visible")
    assert visible.count() == 1
    text = visible.inner_text()
    assert "run-0004" in text
    assert "source.film" in text  # an input that the drawing leaves out
    assert page.locator(".edge.lit").count() == 2
    page.locator('a.node[data-id="gate"]').focus()
    page.keyboard.press("Enter")
    assert page.locator(".detail:visible h3").inner_text().startswith("gate")


def test_curve_tells_the_value_under_the_pointer(desktop: Watched) -> None:
    chart = desktop.page.locator("article.curve .chart").first
    chart.scroll_into_view_if_needed()
    chart.hover(position={"x": 150, "y": 80})
    assert chart.locator(".readout").inner_text().startswith("step ")


def test_hostile_captions_stay_text(desktop: Watched) -> None:
    assert desktop.page.get_by_text("a rabbit <script>alert('x')</script>").count() >= 1
    assert desktop.page.evaluate("document.querySelectorAll('script').length") == 1


def test_without_scripts_everything_is_still_readable(browser: Browser, page_file: Path) -> None:
    plain = Watched(browser, page_file, java_script_enabled=False)
    assert plain.page.locator(".detail").first.is_visible()
    assert plain.page.locator(".detail").nth(16).is_visible()
    plain.page.context.close()
