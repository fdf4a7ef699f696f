"""Pages of stages over all runs, and of attempts, also of those that made nothing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from served_home import ServedHome

from pipelines.launchers.base import REQUEST
from pipelines.ledger import AttemptRow, Ledger, Status
from pipelines.stages import ALL
from pipelines.web.app import stage_history as history

ROW = re.compile(r'<tr>\s*<th scope="row">(.*?)</tr>', re.DOTALL)


def rows(page: str) -> list[str]:
    return ROW.findall(page)


def test_every_stage_is_listed_with_how_it_went(reader: TestClient, read_home: ServedHome) -> None:
    page = reader.get("/stages").text
    assert re.findall(r'href="/stages/([a-z_]+)"', page) == [spec.name for spec in ALL]
    train = next(row for row in rows(page) if 'href="/stages/train"' in row)
    assert "succeeded" in train
    assert "1 running" in train
    weights = next(row for row in rows(page) if 'href="/stages/weights"' in row)
    assert "never executed here" in weights


def test_a_stage_lists_its_executions_over_all_runs(reader: TestClient, read_home: ServedHome) -> None:
    page = reader.get("/stages/curate").text
    made, failed = read_home.run_of("curate"), read_home.attempts["curate.broken"]
    assert f'href="/stage-runs/{made}"' in page
    broken = next(row for row in rows(page) if f'href="/attempts/{failed}"' in row)
    assert "20 data integrity: never retried" in broken
    assert "clip table differs from its schema" in broken
    assert read_home.runs["failed"] in broken
    assert [failed in row for row in rows(reader.get("/stages/curate?status=failed").text)] == [True]
    assert [made in row for row in rows(reader.get("/stages/curate?node=curate").text)] == [True]
    assert rows(reader.get("/stages/curate?recipe=nosuch").text) == []
    assert "Show older ones" in reader.get("/stages/train?shown=1").text
    assert reader.get("/stages/nosuch").status_code == 404
    assert reader.get("/stages/train?status=nosuch").status_code == 400
    assert "never executed in this workspace" in reader.get("/stages/weights").text


def test_measures_are_drawn_once_there_are_two(read_home: ServedHome) -> None:
    with Ledger.open(read_home.workspace.ledger_url) as ledger:
        run = ledger.run(read_home.run_of("train.57f"))
        one = ledger.attempt(run.attempt_id)
    attempts, runs = [], {}
    for n in range(5):
        attempts.append(_again(one, n, took_s=10.0 + n))
        runs[f"r{n}"] = _with(run, run_id=f"r{n}", metrics={"tokens_per_second": 100.0 * (n + 1), "name": "x"})
    attempts.append(_with(_again(one, 9, took_s=500.0), status=Status.FAILED, run_id=None))
    found = history._trends(attempts[::-1], runs)  # newest first, as listings are
    assert [(t.name, t.first, t.last) for t in found] == [
        ("seconds taken", 10.0, 14.0),
        ("tokens_per_second", 100, 500),
    ]
    assert found[0].chart.points.count(";") == 4
    other = [_with(row, node_id="train.121f") for row in attempts]
    both = history._trends([*attempts[::-1], *other[::-1]], runs)
    assert sorted((t.node, t.name) for t in both) == [("train.121f", "seconds taken"), (one.node_id, "seconds taken")]
    assert history._trends(attempts[:1], runs) == ()


def _with(row, **changes):  # type: ignore[no-untyped-def]
    return type(row)(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, **changes})


def _again(row: AttemptRow, number: int, took_s: float) -> AttemptRow:
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    again: AttemptRow = _with(
        row, attempt_id=f"a{number}", run_id=f"r{number}", started_at=began,
        finished_at=began + timedelta(seconds=took_s), status=Status.SUCCEEDED,
    )  # fmt: skip
    return again


def test_an_attempt_that_failed_shows_what_it_was_given(reader: TestClient, read_home: ServedHome) -> None:
    failed = read_home.attempts["curate.broken"]
    address = f"/attempts/{failed}"
    assert "Its request is no longer there" in reader.get(address).text
    source = read_home.artifact("source.films")
    with Ledger.open(read_home.workspace.ledger_url) as ledger:
        folder = Path(ledger.attempt(failed).work_dir)
    given = [{"name": "source.films", "kind": "source", "artifact_id": source, "uri": "x"}]
    (folder / REQUEST).write_text(json.dumps({"config": {"min_side": 64, "note": "<b>"}, "inputs": given}))
    page = reader.get(address).text
    assert "min_side: 64" in page
    assert "&lt;b&gt;" in page
    assert f'href="/artifacts/{source}"' in page
    assert "20 data integrity: never retried" in page
    assert 'href="/stages/curate"' in page
    (folder / REQUEST).write_text("{")  # half written
    assert "Its request is no longer there" in reader.get(address).text


def test_an_attempt_that_made_something_leads_to_it(reader: TestClient, read_home: ServedHome) -> None:
    page = reader.get(f"/attempts/{read_home.attempts['train.57f']}").text
    assert f'href="/stage-runs/{read_home.run_of("train.57f")}"' in page
    for artifact in (read_home.artifact("train.57f"), read_home.artifact("encode")):
        assert f'href="/artifacts/{artifact}"' in page
    assert "0 ok" in page


@pytest.mark.parametrize(("exit_class", "words"), [(0, "0 ok"), (30, "30 infrastructure: retried"), (139, "139 bug")])
def test_exit_classes_are_told_in_words(exit_class: int, words: str) -> None:
    from pipelines.web.app.attempt_view import exit_words

    assert exit_words(exit_class).startswith(words)
    assert exit_words(None) == "–"
