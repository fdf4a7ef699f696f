"""Two processes run the same recipe at the same time on one ledger: every stage runs once, and the ledger is whole."""

import json
from collections import Counter
from pathlib import Path

import pytest
from e2e_support import PIPELINE_TIMEOUT_S, artifact_ids, m4v, start

from m4v.core.errors import ExitClass
from pipelines.ledger import Ledger, Status

UNTIL = ("--no-prefect", "--until", "curate", "--json")
STAGES = {"source.shapes", "source.street", "curate"}


@pytest.fixture(params=["sqlite", "postgres"])
def team(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """One store and one ledger; each process has a home of its own."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    return {"M4V_STORE": str(tmp_path / "store"), "M4V_LEDGER": url}


def test_no_stage_runs_twice(team: dict[str, str], tmp_path: Path) -> None:
    outputs = [tmp_path / f"{n}.txt" for n in range(2)]
    both = [
        start(tmp_path / f"home{n}", "run", "micro", *UNTIL, output=out, environment=team)
        for n, out in enumerate(outputs)
    ]
    for process, output in zip(both, outputs, strict=True):
        assert process.wait(PIPELINE_TIMEOUT_S) == ExitClass.OK, output.read_text()
    runs = [{n["node_id"]: n for n in json.loads(output.read_text())["nodes"]} for output in outputs]
    assert artifact_ids(runs[0]) == artifact_ids(runs[1])
    for node in STAGES:
        assert sorted(run[node]["status"] for run in runs) == ["hit", "ran"], node
    with Ledger.open(team["M4V_LEDGER"]) as ledger:
        assert Counter(a.stage for a in ledger.attempts(limit=None)) == {"source": 2, "curate": 1}
        assert {a.status for a in ledger.attempts(limit=None)} == {Status.SUCCEEDED}
        assert len(ledger.runs(limit=None)) == len(STAGES)
    assert "the chain holds" in m4v(tmp_path / "home0", "ledger", "verify", environment=team).stdout
