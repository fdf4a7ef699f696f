"""The data preview in headless Chromium: silent, offline, filterable, within the window, quick with thousands."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser_pages import OVERFLOWING, Watched, overflowing, until
from playwright.sync_api import Browser

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines" / "cli"))
from data_home import DataHome, publish_beside, shared

from m4v.core.artifacts import ArtifactKind
from pipelines.inspection.targets import beside, find_target
from pipelines.ledger import Ledger
from pipelines.web import preview
from pipelines.workspace import Workspace

MANY = 5000


@pytest.fixture(scope="module")
def made(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataHome:
    return shared(made_once)


def _page(made: DataHome, identity: str, file: Path, *overrides: str) -> Path:
    workspace = Workspace.open(made.home)
    with Ledger.open(workspace.ledger_url) as ledger:
        named = find_target(workspace, ledger, identity, (ArtifactKind.DATASET, ArtifactKind.CLIPS))
        file.write_text(preview.build(named, *beside(workspace, ledger, named), preview.Limits(), overrides))
    return file


@pytest.fixture(scope="module")
def page_file(made: DataHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _page(made, made.ids["dataset"], tmp_path_factory.mktemp("page") / "dataset.html")


@pytest.fixture(scope="module")
def many_file(made: DataHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a table of five thousand clips: those of the small one again and again, with pictures."""
    small = made.work / "curated" / "staging" / "clips"
    folder = tmp_path_factory.mktemp("many") / "clips"
    (folder / "previews").mkdir(parents=True)
    table = pq.read_table(small / "clips.parquet")
    picture = next((small / "previews").glob("*.jpg")).read_bytes()
    rows = [row for row in table.to_pylist() if row["duplicate_of"] is None]
    for number in range(MANY):
        (folder / "previews" / f"{number:032x}.jpg").write_bytes(picture)
    made_rows = [{**rows[n % len(rows)], "clip_id": f"{n:032x}"} for n in range(MANY)]
    pq.write_table(pa.Table.from_pylist(made_rows, schema=table.schema), folder / "clips.parquet")
    for name in ("funnel.json", "quarantine.parquet"):
        shutil.copy(small / name, folder / name)
    return _page(made, publish_beside(made, folder), tmp_path_factory.mktemp("page") / "many.html")


@pytest.fixture
def desktop(browser: Browser, page_file: Path) -> Iterator[Watched]:
    watched = Watched(browser, page_file, viewport={"width": 1280, "height": 900})
    yield watched
    watched.page.context.close()


def test_page_is_silent_and_asks_nothing_of_the_network(desktop: Watched) -> None:
    desktop.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    desktop.page.wait_for_timeout(300)
    assert desktop.complaints == []
    assert desktop.requests == [desktop.url]
    assert desktop.page.evaluate("document.querySelectorAll('script').length") == 1


def test_every_section_is_there_with_content(desktop: Watched) -> None:
    for name in ("funnel", "sources", "rejected", "scores", "clips", "buckets", "reconstructions", "quarantine"):
        assert len(desktop.page.locator(f"#{name}").inner_text()) > 40, name
    assert desktop.page.locator(".histogram").count() >= 8
    assert desktop.page.locator(".histogram .threshold").count() >= 3


def test_pictures_and_videos_decode(desktop: Watched) -> None:
    page = desktop.page
    page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    until(page, "Array.from(document.images).every(i => i.complete)")
    assert page.evaluate("Array.from(document.images).every(i => i.naturalHeight === 108)")
    until(page, "Array.from(document.querySelectorAll('video')).every(v => v.readyState >= 1)")
    page.locator("video").first.click()
    until(page, "document.querySelector('video').currentTime > 0.05")


def test_the_sheet_is_filtered_by_rule_source_and_words(desktop: Watched) -> None:
    assert len(desktop.shown()) == 16
    desktop.choose("fate", "too_short")
    assert desktop.shown() == ["too_short"]
    assert desktop.page.locator("#matched").inner_text() == (
        "1 shown of 1 on this page that match; 1 in the whole table"
    )
    desktop.choose("fate", "!kept")
    dropped = desktop.shown()
    assert dropped
    assert "kept" not in dropped
    desktop.choose("source", "shapes")
    assert desktop.shown() == []
    desktop.page.locator("button[type=reset]").click()
    until(desktop.page, "document.querySelectorAll('.clip:not([hidden])').length === 16")
    desktop.page.fill("input[name=words]", "COARSE.mp4 square")
    assert len(desktop.shown()) == 1


def test_the_sheet_is_ordered_by_a_score(desktop: Watched) -> None:
    desktop.choose("order", "-sharpness")
    scores = desktop.page.eval_on_selector_all(
        ".clip:not([hidden])", "nodes => nodes.map(n => JSON.parse(n.dataset.scores).sharpness)"
    )
    assert len(scores) == 16
    assert scores == sorted(scores, reverse=True)


def test_a_cell_of_the_map_shows_its_clips(desktop: Watched) -> None:
    desktop.page.locator('.heat a[data-fate="frozen"][data-source="wild"]').click()
    assert desktop.shown() == ["frozen"]
    assert desktop.page.input_value("select[name=source]") == "wild"


def test_a_what_if_shows_what_changes_side(browser: Browser, made: DataHome, tmp_path: Path) -> None:
    file = _page(made, made.ids["clips"], tmp_path / "tried.html", "curate.filters.min_frames=30")
    watched = Watched(browser, file, viewport={"width": 390, "height": 844})
    watched.page.locator("#what-if a[data-fate]").click()
    assert len(watched.shown()) == 7
    assert set(watched.shown()) == {"kept", "duplicate_near"}
    assert watched.page.locator("#matched").inner_text().endswith("; 7 in the whole table")
    assert watched.page.evaluate(OVERFLOWING) == []
    assert watched.complaints == []
    watched.page.context.close()


def test_a_copy_leads_to_what_stayed(desktop: Watched) -> None:
    desktop.choose("fate", "duplicate_near")
    card = desktop.page.locator(".clip:not([hidden])").first
    assert card.locator("img").count() == 2
    link = card.locator("a.id")
    target = link.get_attribute("href")
    link.click()
    desktop.page.locator(f"[id='{target[1:]}']").wait_for()  # shown once the page has heard of the new address


def test_pictures_have_their_place_before_they_are_there(desktop: Watched) -> None:
    """Else what lies below moves while somebody clicks it."""
    picture = desktop.page.locator(".clip:not([hidden]) .still").first
    picture.scroll_into_view_if_needed()
    picture.evaluate("node => node.decode()")
    stated = """nodes => nodes.filter(n => n.naturalWidth).map(n => {
        const [wide, high] = n.style.aspectRatio.split("/").map(Number);
        return [wide / high, n.naturalWidth / n.naturalHeight, n.offsetWidth / n.offsetHeight, n.offsetHeight];
    })"""
    found = desktop.page.eval_on_selector_all(".clip:not([hidden]) .still", stated)
    assert found
    for promised, own, shown, height in found:
        assert promised == pytest.approx(own)
        assert shown == pytest.approx(own, rel=0.05)
        assert 0 < height <= 133


def test_nothing_overflows(browser: Browser, page_file: Path) -> None:
    watched = Watched(browser, page_file)
    assert overflowing(watched.page) == {}
    watched.page.context.close()


def test_thousands_of_clips_stay_usable(browser: Browser, many_file: Path) -> None:
    assert many_file.stat().st_size < 40 * 2**20
    watched = Watched(browser, many_file, viewport={"width": 1280, "height": 900})
    assert "600 of 5,000 clips" in watched.page.locator("#clips .lead").inner_text()
    assert len(watched.shown()) == 120
    begin = time.monotonic()
    watched.choose("fate", "kept")
    watched.choose("order", "motion")
    watched.choose("fate", "frozen")
    assert time.monotonic() - begin < 60
    matched = watched.page.locator("#matched").inner_text()
    whole = watched.page.locator("select[name=fate] option[value=frozen]").inner_text()
    assert matched.endswith(f"{whole.split('(')[1].rstrip(')')} in the whole table")
    watched.choose("fate", "")
    watched.page.locator("#more button").click()
    assert len(watched.shown()) == 240
    watched.page.context.close()


def test_without_scripts_everything_is_still_there(browser: Browser, page_file: Path) -> None:
    plain = Watched(browser, page_file, java_script_enabled=False)
    assert plain.page.locator(".clip").nth(15).is_visible()
    assert not plain.page.locator("#filters").is_visible()
    plain.page.context.close()
