"""`m4v evaluate totals`: JSON, tables and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

from eval.vbench.constants import DIMENSIONS
from m4v.core.errors import ExitClass

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
