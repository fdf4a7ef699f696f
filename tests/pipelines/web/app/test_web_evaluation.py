"""The leaderboard's page and two evaluations side by side, over made-up scores in a real ledger."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[2] / "inspection"))

from evaluated_home import EvaluatedHome

from pipelines.ledger import Ledger
from pipelines.web.app import create_app
from pipelines.workspace import Workspace

FIRST, WORSE = [0.4, 0.5, 0.6, 0.5, 0.4, 0.6], [0.3, 0.4, 0.5, 0.4, 0.3, 0.5]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("evaluated")
    workspace = Workspace.open(root / "home")
    with Ledger.open(workspace.ledger_url) as ledger:
        home = EvaluatedHome(root, ledger)
        home.evaluated(FIRST, steps=20)
        home.evaluated(FIRST)
        home.evaluated(WORSE)
    with TestClient(create_app(workspace)) as found:
        yield found


def test_regressions_and_published_systems_are_shown(client: TestClient) -> None:
    page = client.get("/evaluation").text
    assert len(re.findall(r'<span class="chip bad"[^>]*>worse</span>', page)) == 1
    assert len(re.findall(r'<span class="chip good"[^>]*>better</span>', page)) == 1, "of noise less is better"
    assert "86.14" in page
    assert "never subtracted" in page


def test_two_of_one_protocol_are_compared(client: TestClient) -> None:
    (link,) = re.findall(r'href="(/evaluation/compare\?[^"]+)"', client.get("/evaluation").text)
    page = client.get(html.unescape(link)).text
    assert "Difference, paired by prompt" in page
    assert re.search(r"</span> [-−]0\.10* <span", page)
    assert page.count('<span class="chip bad">worse</span>') == 1
    assert "more than the model" not in page
    assert page.count('<figure class="card"><video') == 12, "six pairs"


def test_two_protocols_stand_side_by_side_without_a_difference(client: TestClient) -> None:
    ids = dict.fromkeys(re.findall(r'href="/artifacts/([0-9a-f]{64})">scores<', client.get("/evaluation").text))
    newest, _, other = ids
    page = client.get("/evaluation/compare", params={"left": other, "right": newest}).text
    assert "They differ in more than the model: sampler." in page
    assert "Difference, paired by prompt" not in page
    assert page.count('class="two-bars"') == 2
    assert client.get("/evaluation/compare", params={"left": "0123abcd", "right": newest}).status_code == 404


def test_scores_of_stand_in_weights_say_so(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home")
    with Ledger.open(workspace.ledger_url) as ledger:
        home = EvaluatedHome(tmp_path, ledger)
        ids = [home.evaluated(values, stand_in=["good"])[1] for values in (FIRST, WORSE)]
    with TestClient(create_app(workspace)) as client:
        board = client.get("/evaluation").text
        page = client.get("/evaluation/compare", params={"left": ids[0], "right": ids[1]}).text
    assert "This board: stand-in weights, not a result: local.good." in board
    assert board.count('<span class="chip bad">stand-in</span>') == 2
    assert "worse</span>" not in board
    assert [f"{side}: stand-in weights, not a result: local.good." in page for side in ("Left", "Right")] == [True] * 2
    assert page.count('<span class="chip bad">stand-in</span>') == 2
    assert "Difference, paired by prompt" not in page
