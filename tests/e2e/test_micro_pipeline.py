"""The whole pipeline on the micro recipe, through the command line: what a user runs, at the smallest size.

A copy of the session's uninterrupted run is the baseline. A second home is killed again and again on its way and
must end with the same artifacts; drained and refused runs go on from the baseline's cache hits.
"""

import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from e2e_support import (
    PIPELINE_TIMEOUT_S,
    Nodes,
    artifact_ids,
    descendants,
    m4v,
    read_json,
    run_json,
    start,
    statuses,
    wait_for,
    wait_until_gone,
    working_attempt,
)
from suspensions import suspend

from m4v.core.errors import ExitClass
from pipelines.exposure import clip_exposure, summarise, training_line
from pipelines.lease import LEASE_S
from pipelines.ledger import Ledger
from pipelines.ledger.claims import ABANDONED_S
from pipelines.membership import ClipSelector
from training.exposure import surviving_line
from training.heartbeat import HangLimits

KILL_POINTS = ("curate", "train.t2i", "generate.trained")  # a pool of workers, ranks, a stage of one process
MORE_KILL_POINTS = ("curate", "encode", "train.t2i", "train.17f", "generate.trained")
EVALUATION = {"generate.trained", "generate.untrained", "evaluate.trained", "evaluate.untrained", "gate", "report"}
DRAINED_STEPS = 60


class Baseline(NamedTuple):
    """`exposure` is where its training stages noted what each step consumed."""

    home: Path
    nodes: Nodes
    exposure: Path


@pytest.fixture(scope="module")
def baseline(micro_home: Path, micro_of_module: Path) -> Baseline:
    """A copy of the finished run, and what became of its stages."""
    told = json.loads((micro_home.parent / "run.json").read_bytes())
    return Baseline(micro_of_module, {n["node_id"]: n for n in told["nodes"]}, micro_home.parent / "exposure")


def flow_states(home: Path) -> list[tuple[str, str, str | None]]:
    """(name, state, message) of the flow runs that the temporary server has seen, oldest first."""
    if not (home / "prefect").exists():
        return []
    query = """SELECT flow_run.name, state.name, state.message FROM flow_run
        JOIN flow_run_state AS state ON state.id = flow_run.state_id ORDER BY flow_run.created"""
    with sqlite3.connect(f"file:{home / 'prefect' / 'prefect.db'}?mode=ro", uri=True) as database:
        return list(database.execute(query))


def test_every_stage_ran_and_left_a_verified_artifact(baseline: Baseline) -> None:
    home, nodes = baseline.home, baseline.nodes
    assert statuses(nodes) == {"ran"}
    verified = read_json(home, "artifacts", "verify")
    assert {row["artifact_id"] for row in verified} >= set(artifact_ids(nodes).values())
    assert all(row["problem"] is None for row in verified)
    assert "the chain holds" in m4v(home, "ledger", "verify").stdout
    assert not list((home / "store" / "state").glob("*/*")), "resume state must go after publishing"


def test_the_ledger_tells_every_step_that_saw_a_clip(baseline: Baseline) -> None:
    """Exposure in closed form against the log of what the steps of this very run consumed."""
    home, nodes = baseline.home, baseline.nodes
    with Ledger.open(str(home / "ledger.db")) as ledger:
        dataset = nodes["encode"]["outputs"]["dataset"]["artifact_id"]
        index = pq.read_table(Path(ledger.artifact(dataset).uri) / "index.parquet", columns=["clip_id", "sample_id"])
        trained = [
            n["outputs"]["checkpoint"]["artifact_id"] for i, n in nodes.items() if i.startswith(("train", "reward"))
        ]
        assert len(trained) == 5
        assert ledger.checkpoints_without_exposure() == []
        for checkpoint in trained:
            own, drawn = training_line(ledger, checkpoint)[0], summarise(ledger, checkpoint)[0]
            line = surviving_line(baseline.exposure, own.stage, own.cursor)
            used = [(step, sample) for step, draws in enumerate(line) for _, sample, _ in draws]
            assert drawn.samples == len(used)
            for row in index.to_pylist():
                asked = ClipSelector(clips=(row["clip_id"],))
                found = {v.clip.clip_id: v for v in clip_exposure(ledger, checkpoint, asked, with_steps=True)}
                steps = [step for step, sample in used if sample == row["sample_id"]]
                assert list(found[row["clip_id"]].stages[0].steps or ()) == steps


def test_a_second_run_is_all_cache_hits_without_a_server_and_plan_says_so(baseline: Baseline) -> None:
    home, nodes = baseline.home, baseline.nodes
    plan = read_json(home, "plan", "micro")
    assert plan["all_hits"], [(s["node_id"], s["reason"]) for s in plan["steps"] if s["status"] != "hit"]
    # A server that is not there would be an error, a temporary one would add a flow run.
    flows, nowhere = flow_states(home), {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    again = run_json(home, "micro", environment=nowhere)
    assert statuses(again) == {"hit"}
    assert artifact_ids(again) == artifact_ids(nodes)
    assert flow_states(home) == flows


def test_changed_prompts_run_only_evaluation_and_report(baseline: Baseline) -> None:
    change = ("--set", "generate.prompts=[a blue square moves from right to left on a black background]")
    plan = read_json(baseline.home, "plan", "micro", *change)
    assert {s["node_id"] for s in plan["steps"] if s["expectation"] != "hit"} == EVALUATION
    assert "prompts" in next(s["reason"] for s in plan["steps"] if s["node_id"] == "generate.trained")
    nodes = run_json(baseline.home, "micro", "--no-prefect", *change)
    assert {i for i, n in nodes.items() if n["status"] == "ran"} <= EVALUATION
    assert nodes["generate.trained"]["status"] == "ran"


def test_lineage_leads_from_the_checkpoint_to_the_sources_and_back(baseline: Baseline) -> None:
    home, nodes = baseline.home, baseline.nodes
    checkpoint = nodes["reward"]["outputs"]["checkpoint"]["artifact_id"]
    source = nodes["source.street"]["outputs"]["source"]["artifact_id"]
    assert source in {a["artifact_id"] for a in read_json(home, "lineage", "up", checkpoint)["artifacts"]}
    assert checkpoint in {a["artifact_id"] for a in read_json(home, "lineage", "down", source)["artifacts"]}
    tree = m4v(home, "lineage", "up", checkpoint[:16]).stdout
    assert "checkpoint" in tree
    assert "source" in tree


def test_a_refused_gate_is_told_everywhere(baseline: Baseline) -> None:
    """A threshold that nothing reaches: exit code, summary, ledger and Prefect say so, the report is still made."""
    home = baseline.home
    rule = "gate.rules=[{rule: minimum, metric: local.flicker, value: 2.0}]"
    done = m4v(home, "run", "micro", "--set", rule, code=ExitClass.GATE_REFUSED)
    assert "the gate refused the checkpoint" in done.stdout
    assert "report: " in done.stdout
    run = read_json(home, "runs", "list", "--limit", "1")[0]
    assert (run["exit_class"], run["message"]) == (60, "the evaluation gate refused the checkpoint")
    _, state, message = flow_states(home)[-1]
    assert state == "Failed"
    assert "the evaluation gate refused the checkpoint" in str(message)


@pytest.mark.parametrize(
    ("number", "prefect", "steps"),
    [
        pytest.param(signal.SIGINT, "--no-prefect", DRAINED_STEPS, marks=pytest.mark.deep),
        (signal.SIGTERM, "--prefect", DRAINED_STEPS + 1),
    ],
)
def test_a_drained_run_ends_with_40_and_goes_on_where_it_was(
    baseline: Baseline, tmp_path: Path, number: signal.Signals, prefect: str, steps: int
) -> None:
    home, output = baseline.home, tmp_path / "output"
    longer = ("micro", "--until", "train.t2i", "--set", f"train.t2i.steps={steps}", prefect)
    process = start(home, "run", *longer, output=output)
    attempt = wait_for(lambda: working_attempt(home, "train.t2i", done=1), process, output, "training began")
    os.kill(process.pid, number)
    assert process.wait(PIPELINE_TIMEOUT_S) == ExitClass.DRAINED, output.read_text()
    said = output.read_text()
    assert "draining: stages save their state and stop" in said
    assert "drained, the same command resumes" in said
    assert read_json(home, "runs", "show", attempt.attempt_id)["exit_class"] == ExitClass.DRAINED
    assert read_json(home, "runs", "list", "--limit", "1")[0]["exit_class"] == ExitClass.DRAINED
    if prefect == "--prefect":
        assert flow_states(home)[-1][1] == "Cancelled"
    nodes = run_json(home, *longer[:-1], "--no-prefect")
    assert nodes["train.t2i"]["status"] == "ran"
    checkpoint = Path(nodes["train.t2i"]["outputs"]["checkpoint"]["uri"])
    recorded = [json.loads(line)["step"] for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    assert len(recorded) == steps
    assert len(set(recorded)) == steps, "no step is lost or taken twice"


def test_a_second_interrupt_ends_at_once_and_leaves_nothing(baseline: Baseline, tmp_path: Path) -> None:
    home, output = baseline.home, tmp_path / "output"
    command = ("run", "micro", "--until", "train.t2i", "--set", "train.t2i.steps=5000", "--no-prefect")
    process = start(home, *command, output=output)
    wait_for(lambda: working_attempt(home, "train.t2i"), process, output, "training began")
    left = descendants(process.pid)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "draining" in output.read_text(), process, output, "the first interrupt was heard")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(PIPELINE_TIMEOUT_S) == ExitClass.DRAINED
    assert "Traceback" not in output.read_text()
    assert wait_until_gone(left, 120) == []


@pytest.mark.parametrize("points", [KILL_POINTS, pytest.param(MORE_KILL_POINTS, marks=pytest.mark.deep)])
def test_killed_on_its_way_it_ends_with_the_same_artifacts(
    baseline: Baseline, tmp_path: Path, points: tuple[str, ...]
) -> None:
    """kill -9 of the whole process group at each point; also the double-run digest check."""
    home, output = tmp_path / "home", tmp_path / "output"
    for node_id in points:
        process = start(home, "run", "micro", "--no-prefect", output=output)
        wait_for(lambda: working_attempt(home, node_id), process, output, f"{node_id} ran")  # noqa: B023
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        verified = read_json(home, "artifacts", "verify")
        assert all(row["problem"] is None for row in verified), "a published artifact is never half there"
    nodes = run_json(home, "micro", "--no-prefect")
    assert statuses(nodes) <= {"ran", "hit"}
    assert artifact_ids(nodes) == artifact_ids(baseline.nodes)
    assert "the chain holds" in m4v(home, "ledger", "verify").stdout


@pytest.mark.deep
def test_suspended_on_its_way_it_just_goes_on(baseline: Baseline, tmp_path: Path) -> None:
    """Pools, ranks and servers stop together again and again, once for longer than any claim is held unrenewed and any
    step may be silent."""
    home, output, errors = tmp_path / "home", tmp_path / "output", tmp_path / "errors"
    rng = random.Random(1)
    process = start(home, "run", "micro", "--json", output=output, errors=errors)
    wait_for(lambda: working_attempt(home, "train.t2i", done=3), process, errors, "it made steps")
    suspend(process.pid, max(ABANDONED_S, HangLimits().least_s) + LEASE_S)
    while process.poll() is None:
        time.sleep(rng.uniform(1.0, 6.0))
        suspend(process.pid, rng.uniform(0.5, 4.0))
    assert process.wait() == ExitClass.OK, errors.read_text()
    nodes = {node["node_id"]: node for node in json.loads(output.read_bytes())["nodes"]}
    assert statuses(nodes) == {"ran"}
    assert artifact_ids(nodes) == artifact_ids(baseline.nodes)
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        assert {a.exit_class for a in ledger.attempts(limit=None)} == {0}, "no attempt was drained, lost or repeated"
    assert "the chain holds" in m4v(home, "ledger", "verify").stdout
