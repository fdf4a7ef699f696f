"""A table of an ablation in Chromium: found from the leaderboard, complete on a phone, asking nothing of elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser
from subject_pages import Visitor, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines" / "inspection"))

from ablated_home import HOSTILE, ablated_home


def test_a_table_is_found_read_and_exported(browser: Browser, tmp_path: Path) -> None:
    home = ablated_home(tmp_path)
    with serving(home.place, read_only=True) as address:
        visitor = Visitor(browser, address)
        visitor.open("/evaluation")
        visitor.click("ablations")
        visitor.click("table-5")
        visitor.says("Reward learning and generated data", "not run no collection is here", "81.55", HOSTILE)
        assert visitor.page.locator("table.variants").count() == 2, "ours and the paper's"
        visitor.page.get_by_text("What each row changes").click()
        visitor.says("reward none → reward")
        with visitor.page.expect_request("**/ablation.csv"):
            visitor.page.get_by_role("link", name="CSV").click(no_wait_after=True)
        visitor.page.set_viewport_size({"width": 390, "height": 800})
        visitor.open(f"/evaluation/ablations/{home.table.id}")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390, "tables scroll within themselves"
        assert visitor.complaints == []
        assert visitor.elsewhere == []
        visitor.close()
