"""The whole pipeline on the micro recipe, through the command line: what a user runs, at the smallest size.

One uninterrupted run is the baseline of the module; a second home is killed again and again on its way and
must end with the same artifacts.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PIPELINE_TIMEOUT_S = 400
KILL_POINTS = ("curate", "encode", "train.t2i", "train.17f", "generate.trained")
pytestmark = pytest.mark.timeout(1200)


def m4v(home: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(home), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIPELINE_TIMEOUT_S, check=False)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {n["node_id"]: n for n in json.loads(done.stdout)["nodes"]}


def artifact_ids(nodes: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Every output but the report, which may hold times."""
    return {
        f"{node_id}.{name}": output["artifact_id"]
        for node_id, node in nodes.items()
        for name, output in node["outputs"].items()
        if output["kind"] != "report"
    }


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A finished run under Prefect's temporary server."""
    home = tmp_path_factory.mktemp("baseline") / "home"
    return home, outcomes(m4v(home, "run", "micro", "--json"))


def test_every_stage_ran_and_left_a_verified_artifact(baseline: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    home, nodes = baseline
    assert {n["status"] for n in nodes.values()} == {"ran"}
    verified = json.loads(m4v(home, "artifacts", "verify", "--json").stdout)
    assert len(verified) >= len(artifact_ids(nodes)) - 2  # equal bytes are one artifact
    assert all(row["problem"] is None for row in verified)
    assert "the chain holds" in m4v(home, "ledger", "verify").stdout
    assert not list((home / "store" / "state").glob("*/*")), "resume state must go after publishing"


def test_a_second_run_is_all_cache_hits_and_plan_says_so(baseline: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    home, nodes = baseline
    plan = json.loads(m4v(home, "plan", "micro", "--json").stdout)
    assert plan["all_hits"], [(s["node_id"], s["reason"]) for s in plan["steps"] if s["status"] != "hit"]
    again = outcomes(m4v(home, "run", "micro", "--json"))
    assert {n["status"] for n in again.values()} == {"hit"}
    assert artifact_ids(again) == artifact_ids(nodes)


def test_changed_prompts_run_only_evaluation_and_report(baseline: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    home, _ = baseline
    change = ("--set", "generate.prompts=[a blue square moves from right to left on a black background]")
    plan = json.loads(m4v(home, "plan", "micro", "--json", *change).stdout)
    expected = {s["node_id"] for s in plan["steps"] if s["expectation"] != "hit"}
    assert expected == {
        "generate.trained", "generate.untrained", "evaluate.trained", "evaluate.untrained", "gate", "report",
    }  # fmt: skip
    reason = next(s["reason"] for s in plan["steps"] if s["node_id"] == "generate.trained")
    assert "generate" not in reason or "prompts" in reason
    assert "prompts" in reason
    done = outcomes(m4v(home, "run", "micro", "--json", *change))
    assert {i for i, n in done.items() if n["status"] == "ran"} <= expected
    assert done["generate.trained"]["status"] == "ran"


def test_lineage_leads_from_the_checkpoint_to_the_sources_and_back(
    baseline: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    home, nodes = baseline
    checkpoint = nodes["reward"]["outputs"]["checkpoint"]["artifact_id"]
    source = nodes["source.street"]["outputs"]["source"]["artifact_id"]
    up = json.loads(m4v(home, "lineage", "up", checkpoint, "--json").stdout)
    down = json.loads(m4v(home, "lineage", "down", source, "--json").stdout)
    assert source in {a["artifact_id"] for a in up["artifacts"]}
    assert checkpoint in {a["artifact_id"] for a in down["artifacts"]}
    tree = m4v(home, "lineage", "up", checkpoint[:16]).stdout
    assert "checkpoint" in tree
    assert "source" in tree


def _running(home: Path, node_id: str) -> bool:
    """Whether the stage's process has reported progress (its work has begun)."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_RUNNING, str(home)], capture_output=True, text=True, check=False
    )
    return node_id in listed.stdout.split()


_LIST_RUNNING = """
import sys
from pathlib import Path
from pipelines.ledger import Ledger, Status
home = Path(sys.argv[1])
if (home / "ledger.db").exists():
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        for attempt in ledger.attempts(status=Status.RUNNING):
            if (Path(attempt.work_dir) / "progress.json").exists():
                print(attempt.node_id)
"""


def _kill_while_running(home: Path, node_id: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(home), "run", "micro", "--no-prefect"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + PIPELINE_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None and not _running(home, node_id):
        time.sleep(0.1)
    assert process.poll() is None, f"the run ended before {node_id} was seen running"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_at_every_stage_it_ends_with_the_same_artifacts(
    baseline: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    """kill -9 of the whole process group, five times on the way; also the double-run digest check."""
    home = tmp_path / "home"
    for node_id in KILL_POINTS:
        _kill_while_running(home, node_id)
        verified = json.loads(m4v(home, "artifacts", "verify", "--json").stdout)
        assert all(row["problem"] is None for row in verified), "a published artifact is never half there"
    nodes = outcomes(m4v(home, "run", "micro", "--no-prefect", "--json"))
    assert {n["status"] for n in nodes.values()} <= {"ran", "hit"}
    assert artifact_ids(nodes) == artifact_ids(baseline[1])
    assert "the chain holds" in m4v(home, "ledger", "verify").stdout
