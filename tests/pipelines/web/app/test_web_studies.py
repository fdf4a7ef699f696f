"""Studies on the pages: found from the leaderboard, every figure of the results, and what is no study."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[2] / "inspection"))

from studied_home import HOSTILE, StudiedHome, studied_home

from pipelines.inspection.studies import study_view
from pipelines.ledger import Ledger
from pipelines.web.app import create_app
from pipelines.workspace import Workspace


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> StudiedHome:
    return studied_home(tmp_path_factory.mktemp("studied"))


@pytest.fixture(scope="module")
def client(home: StudiedHome) -> Iterator[TestClient]:
    with TestClient(create_app(Workspace.open(home.place))) as found:
        yield found


def test_the_list_has_every_count_of_a_study(client: TestClient, home: StudiedHome) -> None:
    assert 'href="/evaluation/studies"' in client.get("/evaluation").text
    page = client.get("/evaluation/studies").text
    assert page.index(f"/evaluation/studies/{home.results}") < page.index(f"/evaluation/studies/{home.early}")
    assert "28 answers of 7" in page
    assert HOSTILE not in page
    assert "show more" not in client.get("/evaluation/studies?newest=1").text, "there is no other"


def test_results_show_ranks_intervals_agreement_and_who_was_left_out(client: TestClient, home: StudiedHome) -> None:
    page = client.get(f"/evaluation/studies/{home.results[:12]}").text
    assert HOSTILE not in page
    assert page.count('<line class="interval"') == 15
    assert page.count("<circle ") == 15
    assert "Kendall&#39;s W 1.000" in page or "Kendall's W 1.000" in page
    assert "p001 with 4 answers: the invitation was revoked" in page
    assert "another system, imported" in page
    assert f"/evaluation/studies/{home.early}" in page
    early = client.get(f"/evaluation/studies/{home.early}").text
    assert "nothing here is a result yet" in early
    assert '<line class="interval"' not in early


def test_bars_are_in_order_within_the_chart_and_preferences_add_up(home: StudiedHome) -> None:
    workspace = Workspace.open(home.place)
    with Ledger.open(workspace.ledger_url) as ledger:
        view = study_view(ledger, workspace.cache, home.results)
    aesthetic, motion, semantic = view.criteria
    assert [bar.system.system for bar in aesthetic.bars] == list(view.study.names)
    assert semantic.bars[0].system.system == view.study.names[2]
    for criterion in view.criteria:
        places = [bar.at for bar in criterion.bars]
        assert places == sorted(places, reverse=True)
        assert all(bar.low is not None and bar.high is not None for bar in criterion.bars)
        assert all(0 < (bar.low or 0) <= bar.at <= (bar.high or 0) < 1 for bar in criterion.bars)
    assert motion.preferred[0][0] is None
    assert motion.preferred[0][4] == pytest.approx(6 / 7), "one of seven sees it the other way round"
    assert motion.preferred[0][4] + (motion.preferred[4][0] or 0) == pytest.approx(1)


def test_the_table_of_answers_and_what_is_no_study(client: TestClient, home: StudiedHome) -> None:
    found = client.get(f"/evaluation/studies/{home.results}/answers.csv")
    assert found.headers["content-type"].startswith("text/csv")
    assert len(found.text.splitlines()) == 1 + 8 * 4 * 3 * 5
    missing = client.get(f"/evaluation/studies/{home.other}")
    assert missing.status_code == 404
    assert "no results of a study" in missing.text
