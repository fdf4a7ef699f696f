"""`m4v study`: from the samples of a finished run to results with lineage; a killed server loses nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.study.design import tasks_of
from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import Ledger
from pipelines.studies import open_study
from pipelines.workspace import Workspace

M4v = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("create", "--system", "a=1"), 10, "at least 2 items"),
        (("create", "--system", "a"), 10, "--system takes NAME=SAMPLES"),
        (("create", "--system", "a=1", "--system", "a=2"), 10, "names one system twice"),
        (("create", "--system", "a=1", "--system", "b=2"), 10, "no such artifact: '1'"),
        (("create", "--system", "a=1", "--system", "b=2", "--criterion", "Sharpness"), 10, "takes TITLE=QUESTION"),
        (("results", "abc"), 10, "no such artifact"),
        (("serve", "abc"), 10, "no such artifact"),
    ],
)  # fmt: skip
def test_what_a_user_gets_wrong_is_one_line(m4v: M4v, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, out, err = m4v("study", *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1


def samples_of(home: Path) -> list[str]:
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        return [row.artifact_id for row in ledger.artifacts(kind=ArtifactKind.SAMPLES, limit=None)]


def answer_over_the_wire(home: Path, study: str, tokens: list[str]) -> None:
    """Every participant answers, the server being killed after each answer that it acknowledged."""
    environment = {**os.environ, "M4V_HOME": str(home)}
    for token in tokens:
        for form in ("agree=yes", "aesthetic.0=1&aesthetic.1=2&motion.0=1&motion.1=2&semantic.0=2&semantic.1=1"):
            command = [sys.executable, "-m", "pipelines.cli.main", "study", "serve", study, "--port", "0"]
            server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            address = server.stdout.readline().split()[2].rstrip("/")
            page = "consent" if form == "agree=yes" else "tasks/1"
            sent = urllib.request.Request(f"{address}/s/{token}/{page}", data=form.encode(), method="POST")
            with urllib.request.urlopen(sent) as answered:  # follows the redirect that acknowledges
                assert answered.status == 200
            server.send_signal(signal.SIGKILL)
            server.wait()
            server.stdout.close()


@pytest.mark.deep
def test_a_study_from_samples_to_results(m4v: M4v, micro_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M4V_HOME", str(micro_copy))
    one, other = samples_of(micro_copy)
    create = ("study", "create", "--system", f"ours={one}", "--system", f"base={other}", "--json")
    code, out, err = m4v(*create)
    assert code == 0, err
    study = json.loads(out)["study"]
    assert json.loads(m4v(*create)[1])["study"] == study

    assert "has no answers yet" in m4v("study", "results", study)[2]
    assert "is a report and no study" in m4v("study", "invite", report_of(micro_copy, study))[2]
    invited = json.loads(m4v("study", "invite", study, "--count", "3", "--json")[1])
    answer_over_the_wire(micro_copy, study, [row["link"].rsplit("/", 1)[1] for row in invited[:2]])
    m4v("study", "invite", study, "--revoke", "p002")
    people = json.loads(m4v("study", "invite", study, "--json")[1])
    assert [(p["state"], p["answered"]) for p in people] == [("open", 1), ("revoked", 1), ("open", 0)]

    table = micro_copy / "answers.csv"
    results = json.loads(m4v("study", "results", study, "--csv", str(table), "--json")[1])
    assert (results["participants"], results["invited"]) == (1, 3)
    assert results["excluded"][0]["participant"] == "p002"
    assert len(list(csv.DictReader(io.StringIO(table.read_text())))) == 2 * 3 * 2
    expected = expected_winner(micro_copy, study)
    assert max(results["criteria"][0]["systems"], key=lambda s: s["strength"])["system"] == expected
    assert json.loads(m4v("study", "results", study, "--json")[1])["artifact_id"] == results["artifact_id"]
    up = m4v("lineage", "up", results["artifact_id"])[1]
    assert all(artifact[:12] in up for artifact in (study, one, other))


def report_of(home: Path, study: str) -> str:
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        rows = ledger.artifacts(kind=ArtifactKind.REPORT, limit=None)
    return next(row.artifact_id for row in rows if row.artifact_id != study)


def expected_winner(home: Path, study: str) -> str:
    """Of the first criterion: what p001 was shown first."""
    workspace = Workspace.open(home)
    with Ledger.open(workspace.ledger_url) as ledger:
        found = open_study(workspace, ledger, study).study
    return tasks_of(found, "p001")[0].shown[0]
