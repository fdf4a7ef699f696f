"""Results of a study in Chromium: found from the leaderboard, complete on a phone, asking nothing of elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from browser_pages import overflowing
from playwright.sync_api import Browser
from subject_pages import Visitor, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines" / "inspection"))

from studied_home import HOSTILE, studied_home


def test_results_are_found_and_read(browser: Browser, tmp_path: Path) -> None:
    home = studied_home(tmp_path)
    with serving(home.place, read_only=True) as address:
        visitor = Visitor(browser, address)
        visitor.open("/evaluation")
        visitor.click("studies")
        visitor.click("28 answers of 7")
        visitor.says("Aesthetic quality", "Motion smoothness", "Semantic coherence", HOSTILE, "revoked")
        charts = visitor.page.locator("svg.forest")
        assert charts.count() == 15
        assert (
            visitor.page.locator("svg.forest circle").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 0, 0)"
        )
        visitor.page.get_by_text("Who was preferred to whom").first.click()
        visitor.says("100 %")
        with visitor.page.expect_request("**/answers.csv"):
            visitor.page.get_by_role("link", name="CSV").click(no_wait_after=True)
        visitor.open(f"/evaluation/studies/{home.results}")
        assert overflowing(visitor.page) == {}
        assert visitor.complaints == []
        assert visitor.elsewhere == []
        visitor.close()
