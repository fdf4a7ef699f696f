"""`m4v evaluate totals` and `leaderboard`: JSON, tables and what is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "inspection"))

from evaluated_home import GOOD, EvaluatedHome

from eval.vbench.constants import DIMENSIONS
from m4v.core.errors import ExitClass
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

M4v = Callable[..., tuple[int, str, str]]


def test_totals_as_json_and_as_a_table(m4v: M4v, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(dict.fromkeys(DIMENSIONS, 50)))
    code, out, _ = m4v("evaluate", "totals", str(file), "--json")
    whole = json.loads(out)
    assert code == 0
    assert whole["missing"] == {"quality": [], "semantic": []}
    assert whole["total"] == (4 * whole["quality"] + whole["semantic"]) / 5
    assert f"total     {whole['total']:.2f} percent" in m4v("evaluate", "totals", str(file))[1]

    file.write_text(json.dumps(dict.fromkeys(DIMENSIONS[:-1], 0.5)))
    code, out, err = m4v("evaluate", "totals", str(file), "--unit", "fraction")
    assert code == 0
    assert "total     absent\n" in out
    assert f"missing for semantic and total: {DIMENSIONS[-1]}" in err
    assert json.loads(m4v("evaluate", "totals", str(file), "--unit", "fraction", "--json")[1])["total"] is None


def test_totals_refuse_in_one_line(m4v: M4v, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text('{"colour": 50}')
    code, _, err = m4v("evaluate", "totals", str(file))
    assert code == ExitClass.CONFIG
    assert "no such dimension: 'colour'" in err
    assert err.count("\n") == 1
    assert m4v("evaluate", "totals", str(tmp_path / "none.json"))[0] == ExitClass.CONFIG


def test_leaderboard_of_an_empty_home_names_published_systems_and_sources(m4v: M4v) -> None:
    code, out, _ = m4v("evaluate", "leaderboard", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["boards"] == []
    assert {row["source"] for row in found["published"]["rows"]} == set(found["published"]["sources"])
    text = m4v("evaluate", "leaderboard")[1]
    assert "M4V (Wan2.1)\tpaper-table-1\t86.14\t87.56\t80.45" in text


def test_leaderboard_shows_scores_with_intervals_and_marks(m4v: M4v, tmp_path: Path) -> None:
    with Ledger.open(Workspace.open(tmp_path / "home").ledger_url) as ledger:
        home = EvaluatedHome(tmp_path, ledger)
        first, *_ = home.evaluated([0.4, 0.5, 0.6, 0.5, 0.4, 0.6])
        worse, *_ = home.evaluated([0.3, 0.4, 0.5, 0.4, 0.3, 0.5])
        ledger.move_channel("production", first, expected=None, moved_by="me", reason="")
    entries = json.loads(m4v("evaluate", "leaderboard", "--sort", GOOD, "--json")[1])["boards"][0]["entries"]
    assert [e["checkpoint"] for e in entries] == [first, worse]
    assert entries[1]["changes"][GOOD]["regression"]
    assert entries[0]["channels"] == ["production"]
    lines = m4v("evaluate", "leaderboard")[1].splitlines()
    assert any(line.startswith(worse) and "0.4 [" in line and "▼" in line and "▲" in line for line in lines)


def test_leaderboard_marks_what_was_measured_with_stand_in_weights(m4v: M4v, tmp_path: Path) -> None:
    with Ledger.open(Workspace.open(tmp_path / "home").ledger_url) as ledger:
        home = EvaluatedHome(tmp_path, ledger)
        home.evaluated([0.4] * 6)
        checkpoint, *_ = home.evaluated([0.5] * 6, stand_in=["good"])
    boards = json.loads(m4v("evaluate", "leaderboard", "--json")[1])["boards"]
    assert [board["entries"][0]["stand_in"] for board in boards] == [[GOOD], []]
    assert ["weights" in board["facts"] for board in boards] == [True, False]
    lines = m4v("evaluate", "leaderboard")[1].splitlines()
    marked = [line for line in lines if "(stand-in)" in line]
    assert len(marked) == 1
    assert marked[0].startswith(checkpoint)
    assert marked[0].count("(stand-in)") == 1, "of two metrics one stands in"
    assert f"{checkpoint[:12]}: stand-in weights, not a result: {GOOD}" in lines
