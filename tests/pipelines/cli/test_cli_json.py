"""JSON of the read verbs, which scripts parse: keys are added, never renamed or taken away."""

import json
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.errors import ExitClass
from m4v.core.stage import InputRef
from pipelines.cli.main import main
from pipelines.environment import local_target
from pipelines.ledger import Ledger, NewRun
from pipelines.ledger import NodeOutcome as How
from pipelines.store import ArtifactRecord

OUTPUT = {"artifact_id", "uri", "kind", "size_bytes"}
NODE = {
    "node_id", "status", "reason", "seconds", "run_id", "stage_key", "attempt_id", "outputs", "error", "exit_class",
    "log_path",
}  # fmt: skip
STEP = {
    "node_id", "stage", "status", "expectation", "reason", "changes", "waits_for", "stage_key", "run_id", "outputs",
    "estimate_s", "size_bytes", "device", "ranks",
}  # fmt: skip
PIPELINE_RUN = {
    "pipeline_run_id", "recipe", "recipe_digest", "status", "trigger", "host", "started_at", "finished_at",
    "exit_class", "message",
}  # fmt: skip
RUN = {
    "run_id", "stage", "stage_version", "stage_key", "config", "config_digest", "code_digest", "seed", "environment",
    "exactness", "inputs", "outputs", "metrics", "attempt_id", "committed_at",
}  # fmt: skip
ATTEMPT = {
    "attempt_id", "number", "status", "exit_class", "message", "started_at", "finished_at", "heartbeat_at", "host",
    "pid", "job", "launcher", "log_path", "work_dir", "progress", "node_id", "stage", "stage_key", "pipeline_run_id",
    "run_id",
}  # fmt: skip
ARTIFACT = {"artifact_id", "kind", "uri", "size_bytes", "files", "summary", "recorded_at"}
Read = Callable[..., Any]


def _artifact(home: Path, name: str, kind: ArtifactKind) -> ArtifactRecord:
    directory = home / "store" / name
    directory.mkdir(parents=True)
    (directory / "data.txt").write_text(name)
    manifest = build_manifest(directory, kind, {"of": name})
    write_manifest(directory, manifest)
    return ArtifactRecord(
        artifact_id=manifest.artifact_id, kind=kind, uri=str(directory), size_bytes=len(name), files=1,
        summary={"of": name},
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """A home in which one pipeline run made clips and a dataset from them; ids by what they are."""
    home = tmp_path / "home"
    home.mkdir()
    clips, dataset = _artifact(home, "clips", ArtifactKind.CLIPS), _artifact(home, "dataset", ArtifactKind.DATASET)
    with Ledger.open(f"sqlite:///{home / 'ledger.db'}") as ledger:
        pipeline = ledger.begin_pipeline_run("mine", {"name": "mine", "seed": 7}, trigger="cli")
        ids = {"pipeline": pipeline, "clips": clips.artifact_id, "dataset": dataset.artifact_id}
        for stage, inputs, outputs in (
            ("curate", {}, {"clips": clips}),
            ("encode", {"clips": clips}, {"dataset": dataset}),
        ):
            claim = ledger.claim(stage * 8, "tester")
            log = home / f"{stage}.log"
            log.write_text(f"{stage} says hello\nand goodbye\n")
            attempt = ledger.begin_attempt(
                claim, stage=stage, work_dir="work", log_path=str(log), pipeline_run_id=pipeline, node_id=stage
            )
            references = [
                InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in inputs.items()
            ]
            facts = NewRun(
                stage=stage, stage_version=1, stage_key=stage * 8, key_record={"stage": stage}, config={"width": 64},
                code_digest="c" * 64, seed=7, environment={"python": "3.11"},
            )  # fmt: skip
            ids[stage] = ledger.commit_run(claim, attempt, facts, references, outputs, {"frames": 10})
            ids[f"{stage} attempt"] = attempt
            ledger.release(claim)
            ledger.record_node(pipeline, stage, stage=stage, how=How.RAN, reason="first run", run_id=ids[stage])
        ledger.finish_pipeline_run(pipeline, ExitClass.OK, "")
    return ids


@pytest.fixture
def read(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Read:
    """What a verb prints with --json, through the console entry point."""

    def call(*arguments: str, code: int = ExitClass.OK) -> Any:
        monkeypatch.setattr(sys, "argv", ["m4v", "--home", str(tmp_path / "home"), *arguments, "--json"])
        monkeypatch.setenv("M4V_HOME", "overridden")
        with pytest.raises(SystemExit) as ended:
            main()
        assert int(ended.value.code or 0) == code
        return json.loads(capsys.readouterr().out)

    return call


def test_runs(read: Read, made: dict[str, str]) -> None:
    (listed,) = read("runs", "list")
    assert set(listed) >= PIPELINE_RUN
    assert "resolved" not in listed, "a list of runs is not a list of recipes"
    assert datetime.fromisoformat(listed["started_at"]).utcoffset() is not None
    shown = read("runs", "show", made["pipeline"])
    assert set(shown) >= PIPELINE_RUN | {"resolved", "nodes"}
    assert {"node_id", "how", "reason", "run_id"} <= set(shown["nodes"][0])
    assert [r["run_id"] for r in read("runs", "list", "--stage", "curate")] == [made["curate"]]
    run = read("runs", "show", made["encode"])
    assert set(run) >= RUN | {"attempts"}
    assert set(run["attempts"][0]) >= ATTEMPT
    assert {"name", "kind", "artifact_id"} <= set(run["inputs"][0])
    assert set(read("runs", "show", made["encode attempt"])) >= ATTEMPT


def test_artifacts(read: Read, made: dict[str, str], tmp_path: Path) -> None:
    listed = read("artifacts", "list")
    assert [set(row) >= ARTIFACT for row in listed] == [True, True]
    assert [r["kind"] for r in read("artifacts", "list", "--kind", "clips")] == ["clips"]
    shown = read("artifacts", "show", made["clips"][:10])
    assert set(shown) >= ARTIFACT | {"manifest", "made_by", "read_by"}
    assert (shown["made_by"], shown["read_by"]) == ([made["curate"]], [made["encode"]])
    verified = read("artifacts", "verify")
    verdict = {"artifact_id", "kind", "uri", "problem", "problems", "repaired"}
    assert [set(row) for row in verified] == [verdict] * 2
    (tmp_path / "home" / "store" / "clips" / "data.txt").write_text("CLIPS")
    damaged = read("artifacts", "verify", code=ExitClass.DATA_INTEGRITY)
    assert {row["artifact_id"]: bool(row["problem"]) for row in damaged} == {
        made["clips"]: True,
        made["dataset"]: False,
    }
    quick = read("artifacts", "verify", "--quick")
    assert {row["problem"] for row in quick} == {None}, "sizes are what they were"


def test_lineage(read: Read, made: dict[str, str]) -> None:
    up = read("lineage", "up", made["dataset"][:12])
    assert set(up) >= {"root", "direction", "artifacts", "runs", "edges", "reuses"}
    assert {a["artifact_id"] for a in up["artifacts"]} == {made["clips"], made["dataset"]}
    assert {r["run_id"] for r in up["runs"]} == {made["curate"], made["encode"]}
    assert {"run_id", "role", "name", "artifact_id"} == set(up["edges"][0])
    down = read("lineage", "down", made["clips"])
    assert made["dataset"] in {a["artifact_id"] for a in down["artifacts"]}


def test_ledger(read: Read) -> None:
    verdict = read("ledger", "verify")
    assert set(verdict) >= {"ok", "events", "head", "problems", "stale", "rebuilt"}
    assert verdict["ok"] is True


def test_plan_and_doctor(read: Read) -> None:
    plan = read("plan", "micro")
    assert set(plan) >= {
        "schema_version", "recipe", "steps", "counts", "estimate_s", "without_history", "gpu_hours", "all_hits",
    }  # fmt: skip
    assert all(set(step) >= STEP for step in plan["steps"])
    assert plan["all_hits"] is False
    checks = read("doctor", "--recipe", "micro")
    assert [set(check) for check in checks] == [{"check", "verdict", "detail"}] * 5
    said = {check["check"]: check["detail"] for check in checks}
    if shutil.which("nvidia-smi") is None:
        target = local_target("cpu")
        assert said["device"].startswith(f"cpu; architecture: {target.architecture}; kernels: {target.kernels}; GPU: ")
    verdicts = {check["check"]: check["verdict"] for check in checks}
    assert (verdicts["recipe and sources"], verdicts["ledger"]) == ("ok", "ok")


def test_the_outcome_of_a_run_is_the_same_for_every_stage(read: Read) -> None:
    run = read("run", "micro", "--until", "source.shapes", "--no-prefect")
    assert set(run) == {"pipeline_run_id", "exit_class", "nodes"}
    assert [set(node) >= NODE for node in run["nodes"]] == [True]
    assert set(run["nodes"][0]["outputs"]["source"]) >= OUTPUT


def test_logs_are_told_by_attempt(
    made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["m4v", "--home", str(tmp_path / "home"), "runs", "logs", made["pipeline"], "--tail", "1"]
    )
    monkeypatch.setenv("M4V_HOME", "overridden")
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("==>")] == ["and goodbye", "and goodbye"]
    assert [line.split()[2:5] for line in lines if line.startswith("==>")] == [
        [made["curate attempt"], "of", "curate:"],
        [made["encode attempt"], "of", "encode:"],
    ]
