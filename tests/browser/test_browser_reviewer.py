"""A reviewer in headless Chromium answers the five lineage questions by clicking; every answer is held against the
ledger's own. `M4V_SCREENSHOTS` names a folder that keeps what was seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from reviewed_home import ReviewedHome
from subject_pages import Visitor, serving

from pipelines.exposure import clip_exposure, summarise
from pipelines.impact import impact
from pipelines.ledger import Ledger
from pipelines.membership import parse_selector

SHORT = 10


@pytest.fixture(scope="module")
def address(reviewed: ReviewedHome) -> Iterator[str]:
    with serving(reviewed.home) as found:
        yield found


@pytest.fixture
def reviewer(browser: Browser, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    assert visitor.elsewhere == []
    assert visitor.complaints == []
    visitor.close()


@pytest.fixture
def ledger(reviewed: ReviewedHome) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{reviewed.home / 'ledger.db'}") as found:
        yield found


def seen(visitor: Visitor, name: str) -> None:
    """Keep a picture of the page where somebody wants to look at it: drawing one costs more than the test."""
    if "M4V_SCREENSHOTS" not in os.environ:
        return
    folder = Path(os.environ["M4V_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    visitor.page.wait_for_timeout(200)
    visitor.page.screenshot(path=folder / f"{name}.png", full_page=True)


def to_checkpoint(reviewer: Visitor, reviewed: ReviewedHome) -> None:
    """From the front page to what the channel `production` names."""
    reviewer.open("/")
    reviewer.click("Channels", within="header")
    reviewer.click("production")
    reviewer.click(reviewed.checkpoint[:SHORT])
    reviewer.says("checkpoint", reviewed.checkpoint)


def test_what_made_this_checkpoint(reviewer: Visitor, reviewed: ReviewedHome, ledger: Ledger) -> None:
    to_checkpoint(reviewer, reviewed)
    seen(reviewer, "1-checkpoint")
    run = ledger.producers(reviewed.checkpoint)[-1]
    reviewer.click(run.run_id)
    reviewer.says("reward", *(port.artifact_id[:SHORT] for port in run.inputs), run.stage_key)
    reviewer.says(run.environment["code"]["commit"], "Config", "optimizer:")
    seen(reviewer, "1-what-made-it")
    dataset = next(port.artifact_id for port in run.inputs if port.kind == "dataset")
    reviewer.click(dataset[:SHORT])
    reviewer.says("dataset", dataset)


def test_which_clips_did_it_see(reviewer: Visitor, reviewed: ReviewedHome, ledger: Ledger) -> None:
    to_checkpoint(reviewer, reviewed)
    reviewer.click("Which clips it saw")
    seen(reviewer, "2-exposure")
    rows = reviewer.page.locator("section[aria-labelledby=clips] tbody tr")
    verdicts = clip_exposure(ledger, reviewed.checkpoint, parse_selector(["source:shapes", "source:street"]))
    assert rows.count() == len(verdicts) == 17
    for verdict in verdicts:
        row = rows.filter(has=reviewer.page.locator(f"a[href='/clips/{verdict.clip.clip_id}']"))
        cells = row.locator("td").all_inner_texts()
        assert (cells[2], cells[3]) == (str(verdict.verdict), str(verdict.uses))
    line = reviewer.page.locator("section[aria-labelledby=line] tbody tr")
    assert [text.split()[0] for text in line.all_inner_texts()] == [
        s.stage for s in summarise(ledger, reviewed.checkpoint)
    ]
    first = rows.first.locator("details").first
    first.locator("summary").click()
    assert first.locator("p").is_visible()


def test_what_must_be_retrained_if_a_clip_is_taken_down(
    reviewer: Visitor, reviewed: ReviewedHome, ledger: Ledger
) -> None:
    to_checkpoint(reviewer, reviewed)
    reviewer.click("Which clips it saw")
    reviewer.click(reviewed.clip[:SHORT])
    reviewer.says("Exposure: which checkpoints saw it", "a red circle")
    seen(reviewer, "3-clip")
    reviewer.click("Takedown impact")
    seen(reviewer, "3-impact")
    reach = impact(ledger, parse_selector([f"clip:{reviewed.clip}"]))
    again = [c for c in reach.checkpoints if c.verdict != "contains"]
    items = reviewer.page.locator("ol.retrain li").all_inner_texts()
    assert len(items) == len(again) == 5
    assert [text.split()[0] for text in items] == ["t2i", "9f", "17f", "33f", "reward"]
    for checkpoint in again:
        assert any(checkpoint.artifact_id[:SHORT] in text for text in items)
        named = reviewer.page.locator(f"th a[href='/artifacts/{checkpoint.artifact_id}']")
        row = reviewer.page.locator("section[aria-labelledby=checkpoints] tbody tr").filter(has=named)
        cells = row.locator("td").all_inner_texts()
        assert cells[1:5] == ["saw", str(checkpoint.uses), str(checkpoint.first_step), str(checkpoint.last_step)]
    reviewer.says("production")


def test_what_differs_between_two_runs(reviewer: Visitor, reviewed: ReviewedHome) -> None:
    reviewer.open("/")
    reviewer.click("Compare", within="header")
    reviewer.page.get_by_label("First run").select_option(reviewed.first)
    reviewer.page.get_by_label("Second run").select_option(reviewed.second)
    reviewer.click("Compare runs")
    seen(reviewer, "4-two-runs")
    config = reviewer.page.locator("#config tbody tr").all_inner_texts()
    assert [row.split() for row in config] == [["gate.confidence", "0.95", "0.9"]]
    reviewer.says("the same 17 clips", "2 pairs, 2 of them byte for byte the same")
    stages = reviewer.page.locator("#stages tbody tr").filter(has_text="gate").first
    assert "config confidence: 0.95 -> 0.9" in stages.inner_text()
    videos = reviewer.page.locator("#samples video")
    assert videos.count() == 4
    assert reviewer.page.evaluate(
        """async () => { const all = [...document.querySelectorAll('#samples video')];
        const ready = v => v.readyState >= 1 || new Promise(done => v.addEventListener('loadedmetadata', done));
        await Promise.all(all.map(ready)); return all.every(v => v.videoWidth === 64); }"""
    )


def test_can_it_be_reproduced_bit_for_bit(reviewer: Visitor, reviewed: ReviewedHome) -> None:
    reviewer.open("/")
    reviewer.click(reviewed.first)
    reviewer.says("Can it be reproduced?")
    row = reviewer.page.locator("section[aria-labelledby=reproduction] tbody tr").filter(has_text="gate").first
    assert "identical" in row.inner_text()
    seen(reviewer, "5-run")
    reviewer.click(reviewed.repeated, within="section[aria-labelledby=reproduction]")
    reviewer.says("identical when it was executed again", "ledger's chain")
    seen(reviewer, "5-repeated")


def test_a_takedown_case_is_read_and_proved(reviewer: Visitor, reviewed: ReviewedHome) -> None:
    reviewer.open("/")
    reviewer.click("Clips", within="header")
    reviewer.click("takedown impact")
    reviewer.click("here")
    reviewer.click(reviewed.takedown)
    reviewer.says("its owner asked for it", "issued", "m4v run micro")
    seen(reviewer, "6-takedown")
    reviewer.click("Verify every claim")
    reviewer.says("Receipt verified")
    reviewer.page.go_back()
    reviewer.click("compare")
    reviewer.says("The second adds 0 clips and lacks 1")
    seen(reviewer, "6-versions")
