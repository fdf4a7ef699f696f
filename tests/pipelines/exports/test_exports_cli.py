"""`m4v ledger deliver|sinks` and `m4v lineage export` as commands, and the settings behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exports_history import CHECKPOINT, HttpSink, small_history
from typer.testing import CliRunner, Result

from m4v.core.errors import ConfigError, ExitClass, M4VError
from pipelines.cli.main import build_app
from pipelines.ledger import Ledger
from pipelines.settings import load_settings
from pipelines.workspace import Workspace


def m4v(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def failure(result: Result) -> M4VError:
    assert isinstance(result.exception, M4VError), result.output
    return result.exception


def write_settings(workspace: Workspace, *sinks: dict[str, Any]) -> None:
    (workspace.home / "settings.yaml").write_text(json.dumps({"sinks": list(sinks)}))


def http(server: HttpSink, **more: Any) -> dict[str, Any]:
    return {"name": "marquez", "kind": "openlineage-http", "url": server.url, "timeout_s": 20.0, **more}


FILE = {"name": "file", "kind": "openlineage-file"}


def test_deliver_feeds_every_sink_and_is_done_the_second_time(
    workspace: Workspace, history: dict[str, str], http_sink: HttpSink
) -> None:
    write_settings(workspace, http(http_sink), FILE)
    first = m4v("ledger", "deliver", "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert [(d["sink"], d["waiting"], d["error"]) for d in told] == [("marquez", 0, None), ("file", 0, None)]
    assert told[0]["delivered"] > 20
    assert [d["delivered"] for d in json.loads(m4v("ledger", "deliver", "--json").stdout)] == [0, 0]
    rows = json.loads(m4v("ledger", "sinks", "--json").stdout)
    assert [(r["sink"], r["kind"], r["waiting"]) for r in rows] == [
        ("marquez", "openlineage-http", 0), ("file", "openlineage-file", 0),
    ]  # fmt: skip


def test_sink_that_is_away_ends_with_30_the_others_are_fed(
    workspace: Workspace, history: dict[str, str], http_sink: HttpSink
) -> None:
    write_settings(workspace, http(http_sink), FILE)
    http_sink.script = ["503"]
    result = m4v("ledger", "deliver")
    assert failure(result).exit_class is ExitClass.INFRASTRUCTURE
    assert "1 of 2 sinks do not take events; marquez: the sink answers 503" in failure(result).message
    row = json.loads(m4v("ledger", "sinks", "--json").stdout)[0]
    assert (row["failures"], row["delivered_seq"]) == (1, 0)
    assert "503" in row["error"]
    assert m4v("ledger", "deliver").exit_code == 0
    assert json.loads(m4v("ledger", "sinks", "--json").stdout)[0]["failures"] == 0


def test_wait_tries_again_until_the_sink_is_back(
    workspace: Workspace, history: dict[str, str], http_sink: HttpSink
) -> None:
    write_settings(workspace, http(http_sink))
    http_sink.script = ["503", "reset"]
    result = m4v("ledger", "deliver", "--wait", "20", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["waiting"] == 0


def test_refused_event_ends_with_10_and_can_be_skipped(
    workspace: Workspace, ledger: Ledger, history: dict[str, str], http_sink: HttpSink
) -> None:
    write_settings(workspace, http(http_sink), FILE)
    http_sink.script = ["422"]
    error = failure(m4v("ledger", "deliver", "marquez"))
    assert error.exit_class is ExitClass.CONFIG
    assert "--skip" in error.message
    assert failure(m4v("ledger", "deliver", "--skip", "1")).what == "--skip is for one sink"
    assert m4v("ledger", "deliver", "marquez", "--skip", "1").exit_code == 0
    assert ledger.outbox("marquez").waiting == 0


def test_unknown_sink_names_those_there_are(workspace: Workspace, history: dict[str, str]) -> None:
    write_settings(workspace, FILE)
    assert failure(m4v("ledger", "deliver", "fil")).next_step == "sinks are: file"


def test_workspace_without_sinks_has_nothing_to_do(workspace: Workspace, history: dict[str, str]) -> None:
    assert m4v("ledger", "deliver", "--json").stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("sink", "said"),
    [
        ({"kind": "openlineage-http", "url": "https://user:pw@host"}, "holds no user or password"),
        ({"kind": "openlineage-http", "url": "ftp://host"}, "no http or https URL"),
        ({"kind": "openlineage-http", "url": "https://h", "timeout_s": 60}, "less than or equal to 20"),
        ({"kind": "openlineage-http", "url": "https://h", "token": "x"}, "unknown key"),
        ({"kind": "openlineage-file", "path": "s3://bucket/x"}, "use a local path"),
        ({"kind": "kafka"}, "kind"),
        ({"kind": "mlflow", "tracking_uri": "http://u:p@h"}, "holds no user or password"),
    ],
)
def test_settings_refuse(workspace: Workspace, sink: dict[str, Any], said: str) -> None:
    write_settings(workspace, {"name": "one", **sink})
    with pytest.raises(ConfigError, match=said):
        load_settings(workspace)


def test_two_sinks_of_one_name_would_share_a_place_in_the_outbox(workspace: Workspace) -> None:
    write_settings(workspace, FILE, FILE)
    with pytest.raises(ConfigError, match="the sink name 'file' stands twice"):
        load_settings(workspace)


def test_export_writes_a_file_of_the_same_bytes(workspace: Workspace, history: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "out" / "events.jsonl"
    arguments = ("lineage", "export", CHECKPOINT.artifact_id[:12], "--format", "openlineage", "--namespace", "team")
    assert m4v(*arguments, "--output", str(target)).exit_code == 0
    assert target.read_text() == m4v(*arguments).stdout
    events = [json.loads(line) for line in target.read_text().splitlines()]
    assert {e["job"]["namespace"] for e in events} == {"team"}


def test_export_of_something_else_says_what_it_is_for(workspace: Workspace, history: dict[str, str]) -> None:
    wrong = failure(m4v("lineage", "export", CHECKPOINT.artifact_id[:12], "--format", "croissant"))
    assert wrong.what == "this export is for dataset, and the artifact is checkpoint"
    run = failure(m4v("lineage", "export", history["first"], "--format", "slsa"))
    assert run.what == "this is the id of no artifact"


def test_small_history_is_what_these_tests_think(ledger: Ledger) -> None:
    small_history(ledger)
    assert ledger.verify_chain().ok
