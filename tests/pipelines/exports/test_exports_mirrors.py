"""Mirrors against the real thing: an MLflow server on localhost, and the W&B client in offline mode."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exports_history import CHECKPOINT, CLIPS, DATASET, ORDER, artifact, run_stage, small_history

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import ExitClass
from pipelines.exports.config import MlflowSink, WandbSink
from pipelines.exports.delivery import Delivered, deliver
from pipelines.exports.mirror import flat, updates
from pipelines.exports.sinks import open_sink
from pipelines.launchers.local import free_port
from pipelines.ledger import Ledger
from pipelines.workspace import Workspace

START_S = 300  # of a server on a machine that has much else to do


# What a tracker is told


def all_updates(ledger: Ledger) -> list[Any]:
    return [u for event in ledger.events(limit=None) for u in updates(ledger, event)]


def test_updates_hold_parameters_metrics_tags_and_links(ledger: Ledger, history: dict[str, str]) -> None:
    found = [u for u in all_updates(ledger) if u.tags.get("m4v.run_id") == history["train"]]
    (train,) = found
    assert (train.name, train.kind, train.parent) == ("train.t2i", "train", history["first"])
    assert train.params["seed"] == "7"
    assert train.params["order.frames"] == str(ORDER["frames"])
    assert {p.name: p.value for p in train.points} == {"loss": 0.5, "steps": 4.0, "ok": 1.0}
    assert train.tags["m4v.output.checkpoint"] == f"checkpoint/{CHECKPOINT.artifact_id}"
    assert [(i.role, i.port, i.artifact_id) for i in train.links] == [
        ("input", "dataset", DATASET.artifact_id), ("output", "checkpoint", CHECKPOINT.artifact_id),
    ]  # fmt: skip
    tagged = {k: v for u in all_updates(ledger) for k, v in u.tags.items() if ".channel." in k or ".withdrawn." in k}
    assert tagged == {"m4v.channel.prod": "current", "m4v.withdrawn.dataset": history["case"]}
    ends = {u.identity: u.status for u in all_updates(ledger) if u.status}
    assert (ends[history["failed"]], ends[history["drained"]]) == ("failed", "drained")


def test_updates_are_the_same_every_time(ledger: Ledger, history: dict[str, str]) -> None:
    assert all_updates(ledger) == all_updates(ledger)


def test_curves_of_a_checkpoint_come_from_its_files(ledger: Ledger, tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0 / (n + 1), "media": "video", "lr": float("1e-3")} for n in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    checkpoint = artifact("curved", ArtifactKind.CHECKPOINT, uri=str(tmp_path))
    pipeline = ledger.begin_pipeline_run("demo", {"name": "demo"})
    run_stage(ledger, pipeline, "train.x", {}, {"checkpoint": checkpoint})
    points = [p for u in all_updates(ledger) for p in u.points if p.name.startswith("train/")]
    assert [(p.name, p.step) for p in points] == [(n, s) for s in range(3) for n in ("train/loss", "train/lr")]
    assert points[2].value == 0.5


def test_flat_names_nested_settings_and_keeps_lists() -> None:
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": "x", "f": None}) == {
        "a.b": "1", "a.c.d": "[1, 2]", "e": "x", "f": "null",
    }  # fmt: skip


# MLflow


@pytest.fixture(scope="module")
def mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return importlib.import_module("mlflow")


@pytest.fixture(scope="module")
def mlflow_server(mlflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real MLflow tracking server with a SQLite store."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_healthy(url, server, folder / "log")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)


def to_mlflow(ledger: Ledger, url: str, name: str = "ml", experiment: str = "m4v") -> Delivered:
    config = MlflowSink(name=name, kind="mlflow", tracking_uri=url, experiment=experiment)
    return deliver(ledger, name, lambda: open_sink(config, ledger, Path("/nowhere")))


def test_mlflow_server_has_runs_params_metrics_tags_and_nesting(
    ledger: Ledger, history: dict[str, str], mlflow: Any, mlflow_server: str, tmp_path: Path
) -> None:
    rows = [{"step": n, "loss": 1.0 / (n + 1)} for n in range(5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    curved = artifact("curved", ArtifactKind.CHECKPOINT, uri=str(tmp_path))
    third = ledger.begin_pipeline_run("demo", {"name": "demo"})
    run_stage(ledger, third, "train.57f", {"checkpoint": CHECKPOINT}, {"checkpoint": curved})
    done = to_mlflow(ledger, mlflow_server)
    assert done.ok, done.error
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)

    def runs() -> dict[str, Any]:
        experiment = client.get_experiment_by_name("m4v").experiment_id
        return {r.data.tags["m4v.id"]: r for r in client.search_runs([experiment], max_results=1000)}

    found = runs()
    attempts = {ledger.run(history[k]).attempt_id: k for k in ("curate", "encode", "train")}
    assert set(attempts) | {history["first"], history["second"], third, history["failed"], history["drained"]} <= set(
        found
    )
    train = found[ledger.run(history["train"]).attempt_id]
    assert (train.info.status, train.info.run_name) == ("FINISHED", "train.t2i")
    assert train.data.params["order.frames"] == "9"
    assert train.data.metrics["loss"] == 0.5
    assert train.data.tags["mlflow.parentRunId"] == found[history["first"]].info.run_id
    assert train.data.tags["m4v.input.dataset"] == f"dataset/{DATASET.artifact_id}"
    assert train.data.tags["m4v.uri.input.dataset"] == DATASET.uri
    assert train.data.tags["m4v.channel.prod"] == "current"
    assert found[history["failed"]].info.status == "FAILED"
    assert found[history["failed"]].data.tags["m4v.message"] == "bytes differ: 'x'"
    assert found[history["drained"]].info.status == "KILLED"
    assert found[third].info.status == "RUNNING"
    assert history["curate"] in found[history["second"]].data.tags["m4v.hit.curate"]
    made = next(r for r in found.values() if r.info.run_name == "train.57f")
    history_ = client.get_metric_history(made.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history_] == [(r["step"], r["loss"]) for r in rows]
    attempt = ledger.attempt(train.data.tags["m4v.id"])
    assert abs(train.info.start_time / 1000 - attempt.started_at.timestamp()) < 5

    # The whole history once more, as after a kill before the first confirmation: nothing is there twice.
    assert to_mlflow(ledger, mlflow_server, name="again").ok
    again = runs()
    assert {k: r.info.run_id for k, r in again.items()} == {k: r.info.run_id for k, r in found.items()}
    assert [m.step for m in client.get_metric_history(made.info.run_id, "train/loss")] == [0, 1, 2, 3, 4]


def test_mlflow_that_is_away_leaves_events_waiting(ledger: Ledger, history: dict[str, str], mlflow: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    done = to_mlflow(ledger, url)
    assert done.error is not None
    assert done.error.exit_class is ExitClass.INFRASTRUCTURE
    assert done.error.what.startswith("MLflow cannot be reached")
    assert ledger.outbox("ml").delivered_seq == 0


def test_mlflow_experiment_that_was_deleted_is_for_somebody_to_settle(
    ledger: Ledger, history: dict[str, str], mlflow: Any, mlflow_server: str
) -> None:
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    client.delete_experiment(client.create_experiment("gone"))
    done = to_mlflow(ledger, mlflow_server, name="gone", experiment="gone")
    assert done.error is not None
    assert done.error.exit_class is ExitClass.CONFIG
    assert "was deleted" in done.error.what


# Weights & Biases


def to_wandb(ledger: Ledger, workspace: Workspace, name: str = "wb", **changes: Any) -> Delivered:
    config = WandbSink(name=name, kind="wandb", **changes)
    return deliver(ledger, name, lambda: open_sink(config, ledger, workspace.home))


BLOCK, HEADER = 32768, 7


def wandb_records(path: Path) -> list[Any]:
    """Records of a `.wandb` file: LevelDB's log format, in which each record is a protobuf message."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part of one
            record = Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def test_wandb_client_writes_a_run_file_for_each_run(ledger: Ledger, workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"step": n, "loss": 1.0 / (n + 1)} for n in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    curved = artifact("curved", ArtifactKind.CHECKPOINT, uri=str(tmp_path))
    pipeline = ledger.begin_pipeline_run("demo", {"name": "demo", "seed": 7})
    ledger.import_artifact(CLIPS)
    run_id = run_stage(ledger, pipeline, "train.57f", {"clips": CLIPS}, {"checkpoint": curved}, config={"a": {"b": 3}})
    failed = run_stage(ledger, pipeline, "reward", {}, {}, ends=ExitClass.INFRASTRUCTURE, message="no node")
    ledger.finish_pipeline_run(pipeline, ExitClass.INFRASTRUCTURE)
    done = to_wandb(ledger, workspace)
    assert done.ok, done.error
    files = {p.name.removesuffix(".wandb").removeprefix("run-"): p for p in workspace.home.rglob("run-*.wandb")}
    attempt = ledger.run(run_id).attempt_id
    assert set(files) == {attempt, failed, pipeline}

    records = wandb_records(files[attempt])
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.run_id, run.project, run.run_group, run.job_type, run.display_name) == (
        attempt, "m4v", pipeline, "train", "train.57f",
    )  # fmt: skip
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["a.b"] == "3"
    steps = [
        {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [s["train/loss"] for s in steps] == [r["loss"] for r in rows]
    summary = {i.key: json.loads(i.value_json) for r in records if r.HasField("summary") for i in r.summary.update}
    assert (summary["status"], summary["loss"]) == ("succeeded", 0.5)
    assert summary["m4v.output.checkpoint"] == f"checkpoint/{curved.artifact_id}"
    ends = {k: next(r.exit.exit_code for r in wandb_records(p) if r.HasField("exit")) for k, p in files.items()}
    assert ends == {attempt: 0, failed: 1, pipeline: 1}
    artifacts = [r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in records if r.HasField("artifact")]
    assert [(a.type, json.loads(a.metadata)["artifact_id"]) for a in artifacts] == [("checkpoint", curved.artifact_id)]


def test_wandb_takes_artifacts_whose_bytes_are_gone_or_remote(ledger: Ledger, workspace: Workspace) -> None:
    pipeline = ledger.begin_pipeline_run("demo", {"name": "demo"})
    remote = artifact("remote", ArtifactKind.DATASET, uri="s3://bucket/artifacts/remote")
    run_stage(ledger, pipeline, "encode", {}, {"clips": CLIPS, "dataset": remote})
    done = to_wandb(ledger, workspace)
    assert done.ok, done.error
    assert len(list(workspace.home.rglob("run-*.wandb"))) == 1


def test_wandb_online_needs_its_key(
    ledger: Ledger, history: dict[str, str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = to_wandb(ledger, workspace, mode="online")
    assert done.error is not None
    assert done.error.exit_class is ExitClass.CONFIG
    assert "WANDB_API_KEY" in done.error.message


# Without the extras


@pytest.mark.parametrize(
    ("package", "open_one"),
    [
        ("mlflow", to_mlflow),
        ("wandb", to_wandb),
    ],
)
def test_missing_client_is_said_with_its_extra(
    ledger: Ledger,
    history: dict[str, str],
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    open_one: Callable[..., Delivered],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    where: Any = "http://127.0.0.1:1" if package == "mlflow" else workspace
    done = open_one(ledger, where, name="one")
    assert done.error is not None
    assert done.error.exit_class is ExitClass.CONFIG
    assert f"m4v-pipeline[{package}]" in (done.error.next_step or "")


def test_small_history_has_a_chain_that_holds(ledger: Ledger) -> None:
    small_history(ledger)
    assert ledger.verify_chain().ok
