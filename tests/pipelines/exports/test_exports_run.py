"""A run of a recipe feeds the workspace's sinks, and one that is away changes nothing about the run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from exports_history import HttpSink
from typer.testing import CliRunner

from pipelines.cli.main import build_app
from pipelines.ledger import Ledger


def run_micro(home: Path, server: HttpSink) -> tuple[int, str, float]:
    sink = {"name": "marquez", "kind": "openlineage-http", "url": server.url, "timeout_s": 20.0}
    (home / "settings.yaml").write_text(json.dumps({"sinks": [sink]}))
    started = time.monotonic()
    arguments = ["--home", str(home), "run", "micro", "--until", "curate", "--no-prefect"]
    result = CliRunner().invoke(build_app(), arguments)
    return result.exit_code, result.output, time.monotonic() - started


@pytest.fixture
def home(micro_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("M4V_HOME", "M4V_STORE", "M4V_LEDGER", "M4V_SETTINGS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    return micro_copy


def test_run_delivers_its_own_events_and_the_history_before_it(home: Path, http_sink: HttpSink) -> None:
    code, output, _ = run_micro(home, http_sink)
    assert code == 0, output
    with Ledger.open(str(home / "ledger.db")) as ledger:
        assert ledger.outbox("marquez").waiting == 0
        newest = ledger.pipeline_runs(limit=1)[0]
    events = http_sink.received
    mine = [
        e
        for e in events
        if e.get("run", {}).get("facets", {}).get("m4v_pipeline", {}).get("pipelineRunId") == newest.pipeline_run_id
    ]
    assert [e["eventType"] for e in mine] == ["START", "COMPLETE"]
    inside = events[events.index(mine[0]) : events.index(mine[1])]
    assert {"micro.source.shapes", "micro.source.street", "micro.curate"} <= {e["job"]["name"] for e in inside}
    assert events.index(mine[0]) > 20  # the run that made everything came first


def test_sink_that_is_away_is_a_note_in_a_run_that_succeeds(home: Path, http_sink: HttpSink) -> None:
    http_sink.script = ["503"] * 1000
    code, output, seconds = run_micro(home, http_sink)
    assert code == 0, output
    assert output.count("sink marquez takes no events") == 1
    assert "m4v ledger deliver" in output
    assert seconds < 600  # of 1000 refusals it waits for none
    with Ledger.open(str(home / "ledger.db")) as ledger:
        assert ledger.outbox("marquez").delivered_seq == 0
    http_sink.script = []
    assert CliRunner().invoke(build_app(), ["ledger", "deliver"]).exit_code == 0
    assert http_sink.received
