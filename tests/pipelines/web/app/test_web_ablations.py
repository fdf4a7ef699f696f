"""Tables of ablations on the page, in the report and on the command line, made by the real stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[2] / "inspection"))

from ablated_home import HOSTILE, AblatedHome, ablated_home

from m4v.core.errors import ExitClass
from pipelines.cli.main import main
from pipelines.web.app import create_app
from pipelines.web.app.pages import ablations
from pipelines.web.sections import ablation as section
from pipelines.web.sections.inputs import ReportInputs
from pipelines.workspace import Workspace

GOOD = "local.good"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> AblatedHome:
    return ablated_home(tmp_path_factory.mktemp("ablated"))


@pytest.fixture(scope="module")
def client(home: AblatedHome) -> Iterator[TestClient]:
    with TestClient(create_app(Workspace.open(home.place))) as found:
        yield found


def test_tables_are_found_from_the_leaderboard(client: TestClient, home: AblatedHome) -> None:
    assert 'href="/evaluation/ablations"' in client.get("/evaluation").text
    page = client.get("/evaluation/ablations").text
    assert page.count(f'href="/evaluation/ablations/{home.table.id}"') == 1, "one table, however often it was made"


def test_more_tables_are_offered_up_to_the_page_s_most(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert '<a href="?newest=10">show more</a>' in client.get("/evaluation/ablations?newest=2").text, "one of 2 runs"
    assert "show more" not in client.get("/evaluation/ablations?newest=3").text
    monkeypatch.setattr(ablations, "MOST", 2)
    assert '<a href="?newest=2">show more</a>' in client.get("/evaluation/ablations?newest=1").text
    assert "show more" not in client.get("/evaluation/ablations?newest=2").text


def test_a_table_shows_differences_and_what_was_not_run(client: TestClient, home: AblatedHome) -> None:
    page = client.get(f"/evaluation/ablations/{home.table.id[:12]}").text
    assert page.count('<span class="chip good">better</span>') == 2, "of the metric that should rise and its complement"
    assert page.count('<span class="chip">not run</span> no collection is here') == 2
    assert "<code>reward</code> none → reward" in page
    assert HOSTILE not in page
    ours, _, printed = page.partition("As printed")
    assert "81.55" in printed
    assert "81.55" not in ours
    assert "never subtracted" in printed


def test_exports_of_the_page(client: TestClient, home: AblatedHome) -> None:
    found = client.get(f"/evaluation/ablations/{home.table.id}/ablation.csv")
    assert found.headers["content-type"].startswith("text/csv")
    assert "table-5,Reward Learning,better," in found.text
    assert "## As printed" in client.get(f"/evaluation/ablations/{home.table.id}/ablation.md").text


def test_what_is_no_table_says_so(client: TestClient, home: AblatedHome) -> None:
    found = client.get(f"/evaluation/ablations/{home.other}")
    assert found.status_code == 404
    assert "no table of an ablation" in found.text


def test_the_report_has_the_table(home: AblatedHome) -> None:
    ((table, words),) = section.gather(ReportInputs({"ablation.table-5": home.table}))
    assert table.rows[1].cells[GOOD].verdict == "better"
    assert any("one training each" in each for each in words)


@pytest.fixture
def m4v(
    home: AblatedHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("M4V_HOME", str(home.place))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m4v", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_the_command_line_lists_and_shows(m4v: Callable[..., tuple[int, str, str]], home: AblatedHome) -> None:
    (listed,) = json.loads(m4v("evaluate", "ablation", "--json")[1])
    assert (listed["artifact_id"], listed["left_out"]) == (home.table.id, 2)
    table = json.loads(m4v("evaluate", "ablation", home.table.id[:10], "--json")[1])
    assert table["rows"][1]["cells"][GOOD]["gain"] == pytest.approx(0.1)
    assert table["paper"]["rows"][0]["figures"] == [81.55, 83.31, 74.47]
    text = m4v("evaluate", "ablation", home.table.id[:10])[1]
    assert "(+0.1) ▲" in text
    assert "not run: no collection is here" in text
    assert "81.55\t83.31\t74.47" in text
    assert m4v("evaluate", "ablation", home.table.id, "--format", "csv")[1].startswith("table,row,variant,")
    code, _, complaint = m4v("evaluate", "ablation", home.other)
    assert code != ExitClass.OK
    assert "m4v evaluate ablation" in complaint
    assert complaint.count("\n") == 1
