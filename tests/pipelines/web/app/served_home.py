"""A home to serve: a finished pipeline run, one that reused most of it, a failed one and one at work, with real files
in a real store. Made through the ledger's and the store's own verbs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_json
from m4v.core.stage import InputRef, OutputResult, Progress
from m4v.video_io import write_mp4
from pipelines.ledger import Ledger, NewRun
from pipelines.provenance import BlobStore
from pipelines.store import ArtifactRecord, ArtifactStore
from pipelines.workspace import Workspace

STEPS = 40
HOSTILE = "a rabbit <script>alert('x')</script>"
DIFF = "--- a/m4v/flow/loss.py\n+++ b/m4v/flow/loss.py\n@@ -1 +1 @@\n-old line\n+new line\n"
LOG = "".join(f"line {n}: step {n} of 9000\n" for n in range(9000)) + "\x1b[31mthe end\x1b[0m\n"
ALL = ("source.films", "curate", "encode", "train.t2i", "train.57f", "generate", "report")


@dataclass
class ServedHome:
    """`runs` by what became of them: done, reused, failed, live. `made` holds stage run and artifact by node."""

    workspace: Workspace
    runs: dict[str, str] = field(default_factory=dict)
    made: dict[str, tuple[str, ArtifactRecord]] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def artifact(self, node: str) -> str:
        return self.made[node][1].artifact_id

    def run_of(self, node: str) -> str:
        return self.made[node][0]


def build(home: Path, store: str | None = None) -> ServedHome:
    """Takes a second or two. `store`: another place for the artifacts, such as `s3://…`."""
    home.mkdir(parents=True)
    local = Workspace.open(home)
    workspace = Workspace(home=local.home, store_uri=store or local.store_uri, ledger_url=local.ledger_url)
    served = ServedHome(workspace)
    with Ledger.open(workspace.ledger_url) as ledger:
        maker = _Maker(served, ledger, home / "staging")
        maker.finished_run()
        maker.reusing_run()
        maker.failed_run()
        maker.live_run()
    return served


class _Maker:
    def __init__(self, served: ServedHome, ledger: Ledger, staging: Path) -> None:
        self.served, self.ledger, self.staging = served, ledger, staging
        self.store = ArtifactStore(served.workspace.store_uri)

    def publish(self, node: str, kind: ArtifactKind, summary: dict[str, Any] | None = None) -> ArtifactRecord:
        folder = self.staging / node
        folder.mkdir(parents=True)
        _FILES.get(node.split(".")[0], _plain)(folder, node)
        manifest = build_manifest(folder, kind, summary or {})
        write_manifest(folder, manifest)
        return self.store.publish(
            OutputResult(
                name=kind, kind=kind, artifact_id=manifest.artifact_id, staging=str(folder),
                size_bytes=manifest.size_bytes, files=len(manifest.files),
            )
        )  # fmt: skip

    def begin(self, node: str, run: str) -> tuple[Any, str, str]:
        self.served.count += 1
        key = digest_json(self.served.count)
        work = self.served.workspace.stage_work(key) / "attempt"
        work.mkdir(parents=True)
        (work / "stage.log").write_text(LOG)
        claim = self.ledger.claim(key, "tester")
        attempt = self.ledger.begin_attempt(
            claim, stage=node.split(".")[0], work_dir=str(work), log_path=str(work / "stage.log"),
            pipeline_run_id=run, node_id=node,
        )  # fmt: skip
        self.served.attempts[node] = attempt
        return claim, attempt, key

    def stage(self, run: str, node: str, kind: ArtifactKind, inputs: Mapping[str, str], **more: Any) -> None:
        claim, attempt, key = self.begin(node, run)
        output = self.publish(node, kind, more.get("summary"))
        stage = node.split(".")[0]
        diff = BlobStore(self.served.workspace.store_uri).put(DIFF.encode())
        code = {"commit": "a" * 40, "branch": "main", "dirty": True, "changed": ["m4v/flow/loss.py"]}
        facts = NewRun(
            stage=stage, stage_version=1, stage_key=key, code_digest="c" * 64, seed=7,
            config={"name": node, "lr": 1e-4},
            key_record={"stage": stage, "seed": 7, "code": {"m4v/flow/loss.py": "d" * 64}, "lock_digest": "e" * 64},
            environment={"python": "3.11.7", "code": {**code, "diff": {**diff.model_dump(), "kept": True}}},
        )  # fmt: skip
        refs = []
        for name, source in inputs.items():
            record = self.served.made[source][1]
            refs.append(InputRef(name=name, kind=record.kind, artifact_id=record.artifact_id, uri=record.uri))
        run_id = self.ledger.commit_run(claim, attempt, facts, refs, {str(kind): output}, {"items": 12})
        self.ledger.release(claim)
        self.ledger.record_node(
            run, node, stage=stage, how="ran", reason=f"first run of {node}", stage_key=key, run_id=run_id
        )
        self.served.made[node] = (run_id, output)

    def finished_run(self) -> None:
        run = self.served.runs["done"] = self.ledger.begin_pipeline_run("films", {"name": "films", "seed": 7})
        self.stage(run, "source.films", ArtifactKind.SOURCE, {})
        self.stage(run, "curate", ArtifactKind.CLIPS, {"source.0": "source.films"})
        self.stage(run, "encode", ArtifactKind.DATASET, {"clips": "curate"}, summary={"samples": 40, "shards": 1})
        self.stage(run, "train.t2i", ArtifactKind.CHECKPOINT, {"dataset": "encode"}, summary={"steps": STEPS})
        self.stage(run, "train.57f", ArtifactKind.CHECKPOINT, {"dataset": "encode", "checkpoint": "train.t2i"})
        self.stage(run, "generate", ArtifactKind.SAMPLES, {"checkpoint": "train.57f"})
        self.stage(run, "report", ArtifactKind.REPORT, {"samples": "generate"})
        self.ledger.finish_pipeline_run(run, 0)

    def reusing_run(self) -> None:
        run = self.served.runs["reused"] = self.ledger.begin_pipeline_run("films", {"name": "films", "seed": 7})
        for node in ALL[:4]:
            self.ledger.record_node(
                run, node, stage=node.split(".")[0], how="hit", reason="same key, outputs verify",
                run_id=self.served.run_of(node),
            )  # fmt: skip
        self.ledger.finish_pipeline_run(run, 0)

    def failed_run(self) -> None:
        run = self.served.runs["failed"] = self.ledger.begin_pipeline_run("broken", {})
        claim, attempt, key = self.begin("curate.broken", run)
        self.ledger.finish_attempt(attempt, 20, "clip table differs from its schema")
        self.ledger.release(claim)
        self.ledger.record_node(
            run,
            "curate.broken",
            stage="curate",
            how="failed",
            reason="no earlier run",
            stage_key=key,
            attempt_id=attempt,
        )
        self.ledger.finish_pipeline_run(run, 20, "curate.broken failed: clip table differs from its schema")

    def live_run(self) -> None:
        run = self.served.runs["live"] = self.ledger.begin_pipeline_run("films", {"name": "films", "seed": 8})
        _, attempt, key = self.begin("train.live", run)
        self.ledger.record_node(
            run, "train.live", stage="train", how="running", reason="seed changed from 7 to 8", stage_key=key
        )
        self.ledger.heartbeat(attempt, Progress(done=30, total=120, unit="steps", note="loss 0.51", eta_s=95))


def _plain(folder: Path, node: str) -> None:
    (folder / "facts.json").write_text(json.dumps({"node": node}))


def _train(folder: Path, node: str) -> None:
    rows = [
        {"step": s, "loss": 1 / (s + 1) + sum(node.encode()) / 1e4, "grad_norm": 0.1 * (s % 7), "lr": 1e-4}
        for s in range(STEPS)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)


def _generate(folder: Path, node: str) -> None:
    (folder / "videos").mkdir()
    videos = []
    for n in range(14):
        frames = np.full((17, 64, 64, 3), 16 * n, np.uint8)
        frames[:, 20:40, 5 + n : 25 + n] = 255
        write_mp4(folder / f"videos/{n:04d}.mp4", frames, 8)
        videos.append(
            {"file": f"videos/{n:04d}.mp4", "prompt": HOSTILE if n == 0 else f"prompt number {n}", "seed": n,
             "frames": 17, "fps": 8.0, "width": 64, "height": 64}
        )  # fmt: skip
    (folder / "samples.json").write_text(json.dumps({"videos": videos, "node": node}))


def _report(folder: Path, node: str) -> None:
    (folder / "index.html").write_text(f"<!doctype html><title>{node}</title><p>report of the run")


_FILES = {"train": _train, "generate": _generate, "report": _report}
