"""An ablation end to end: killed in the middle, gone on with, run again; tables in ledger, report and on the page."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from e2e_support import artifact_ids, m4v, read_json, run_json, start, statuses, wait_for, working_attempt

pytestmark = [pytest.mark.deep, pytest.mark.timeout(3600)]
RECIPE = "extends: ablation\nname: tables\nablation: {tables: [table-3, table-5]}\n"


def rows_of(home: Path, nodes: dict[str, dict[str, Any]], table: str) -> dict[str, dict[str, Any]]:
    found = read_json(home, "evaluate", "ablation", nodes[f"ablation.{table}"]["outputs"]["scores"]["artifact_id"])
    assert found["start_from"] == nodes["train.attention"]["outputs"]["checkpoint"]["artifact_id"]
    return {row["name"]: row for row in found["rows"]}


def test_the_papers_tables_come_about_from_one_start(tmp_path: Path) -> None:
    recipe, home, output = tmp_path / "tables.yaml", tmp_path / "home", tmp_path / "output"
    recipe.write_text(RECIPE)
    process = start(home, "run", str(recipe), "--no-prefect", output=output)
    wait_for(lambda: working_attempt(home, "train.adapt.vis", 1), process, output, "a variant trained")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    nodes = run_json(home, str(recipe), "--no-prefect")
    assert nodes["train.adapt.text"]["status"] == "hit", "what was finished is not trained again"
    assert nodes["train.adapt.vis"]["status"] == "ran"
    again = run_json(home, str(recipe), "--no-prefect")
    assert statuses(again) == {"hit"}
    assert artifact_ids(again) == artifact_ids(nodes)

    blocks = rows_of(home, nodes, "table-3")
    assert [row["variant"] for row in blocks.values()] == ["zigzag", "text", "vis", "text-vis", "m4v"]
    assert {row["steps"] for row in blocks.values()} == {8}
    assert all(row["same_data"] and row["not_compared"] is None for row in blocks.values())
    assert blocks["Text"]["parameters"] == blocks["none"]["parameters"] == blocks["Text"]["shared"]
    assert len({row["checkpoint"] for row in blocks.values()}) == 5
    assert all(cell["gain_interval"] for cell in (blocks["Text"]["cells"]["local.flicker"],))

    training = rows_of(home, nodes, "table-5")
    assert training["neither"]["checkpoint"] == blocks["Text + Vis + Temp"]["checkpoint"], "one variant, two tables"
    assert training["Reward Learning"]["same_data"]
    assert not training["Generated Data"]["same_data"]
    assert training["Generated Data"]["loss_gain"] is None

    page = Path(nodes["report"]["outputs"]["report"]["uri"]) / "index.html"
    ours, _, printed = page.read_text().partition('id="ablation"')[2].partition("As printed")
    assert "Text + Vis + Temp" in ours
    assert "93.28" in printed
    assert "93.28" not in ours
    up = m4v(home, "lineage", "up", nodes["ablation.table-3"]["outputs"]["scores"]["artifact_id"]).stdout
    assert all(row["checkpoint"][:12] in up for row in blocks.values()), "every checkpoint is in the table's lineage"
    assert json.loads(m4v(home, "plan", str(recipe), "--json").stdout)
