"""Reward stages in headless Chromium: from the leaderboard to one of them, wide and narrow, light and dark."""

from __future__ import annotations

from browser_pages import overflowing
from playwright.sync_api import Browser
from reviewed_home import ReviewedHome
from subject_pages import Visitor, serving


def test_a_reward_stage_is_reached_and_fits_every_window(browser: Browser, reviewed: ReviewedHome) -> None:
    with serving(reviewed.home, read_only=True) as address:
        visitor = Visitor(browser, address)
        page = visitor.open("/evaluation")
        visitor.click("reward stages")
        assert "With and without" not in page.inner_text("main")
        page.locator("main tbody a").first.click()
        assert "With and without the reward stage" in page.inner_text("h1")
        assert "velocity_drift" in page.inner_text("#watch ~ div")
        assert page.locator("main svg").count() > 3, "curves of the stage's steps"
        assert overflowing(page) == {}
        assert visitor.complaints == []
        assert visitor.elsewhere == []
        visitor.context.close()
