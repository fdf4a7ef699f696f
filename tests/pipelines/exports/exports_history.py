"""A small history in a ledger, and a real HTTP server that takes events or misbehaves as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.errors import ExitClass
from m4v.core.stage import InputRef
from pipelines.ledger import Ledger, NewRun, NodeOutcome
from pipelines.store import ArtifactRecord

ORDER = {"frames": 9, "mixture": [{"name": "all", "weight": 1}]}


def artifact(name: str, kind: ArtifactKind, summary: Mapping[str, Any] | None = None, uri: str = "") -> ArtifactRecord:
    place = uri or f"/nowhere/{name}"
    return ArtifactRecord(
        artifact_id=digest_json(name), kind=kind, uri=place, size_bytes=10, files=1, summary=dict(summary or {})
    )


CLIPS = artifact("clips", ArtifactKind.CLIPS, {"clips": 17})
DATASET = artifact("dataset", ArtifactKind.DATASET, {"samples": 17})
CHECKPOINT = artifact("checkpoint", ArtifactKind.CHECKPOINT, {"stage": "t2i", "step": 4})


def run_stage(
    ledger: Ledger,
    pipeline: str,
    node: str,
    inputs: Mapping[str, ArtifactRecord],
    outputs: Mapping[str, ArtifactRecord],
    *,
    config: Mapping[str, Any] | None = None,
    ends: ExitClass = ExitClass.OK,
    message: str = "",
) -> str:
    """One attempt of a node, with its end; returns the run's id, or the attempt's when it made none."""
    key = digest_json([node, len(ledger.attempts(limit=None))])
    claim = ledger.claim(key, "tester")
    attempt = ledger.begin_attempt(
        claim, stage=node.split(".")[0], work_dir="work", log_path="log", pipeline_run_id=pipeline, node_id=node
    )
    identity = attempt
    if ends is ExitClass.OK:
        new = NewRun(
            stage=node.split(".")[0], stage_version=1, stage_key=key, key_record={"code": {"a.py": "d" * 64}},
            config=dict(config or {"width": 64}), code_digest="c" * 64, seed=7,
            environment={"code": {"commit": "e" * 40, "branch": "main", "dirty": False}, "python": "3.11"},
        )  # fmt: skip
        references = [InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in inputs.items()]
        identity = ledger.commit_run(claim, attempt, new, references, outputs, {"loss": 0.5, "steps": 4, "ok": True})
    else:
        ledger.finish_attempt(attempt, ends, message)
    ledger.release(claim)
    how = NodeOutcome.RAN if ends is ExitClass.OK else NodeOutcome.FAILED
    if ends is ExitClass.DRAINED:
        how = NodeOutcome.DRAINED
    run_id = identity if ends is ExitClass.OK else None
    ledger.record_node(
        pipeline, node, stage=node.split(".")[0], how=how, reason=message or "first run", stage_key=key, run_id=run_id,
        attempt_id=attempt,
    )  # fmt: skip
    return identity


def small_history(ledger: Ledger) -> dict[str, str]:
    """Two pipeline runs: one that fails, is drained and succeeds in turn, one of a cache hit and a promotion."""
    first = ledger.begin_pipeline_run("demo", {"name": "demo", "seed": 7})
    curate = run_stage(ledger, first, "curate", {}, {"clips": CLIPS})
    failed = run_stage(ledger, first, "encode", {}, {}, ends=ExitClass.DATA_INTEGRITY, message="bytes differ: 'x'")
    encode = run_stage(ledger, first, "encode", {"clips": CLIPS}, {"dataset": DATASET})
    drained = run_stage(ledger, first, "train.t2i", {}, {}, ends=ExitClass.DRAINED, message="drained")
    train = run_stage(
        ledger, first, "train.t2i", {"dataset": DATASET}, {"checkpoint": CHECKPOINT}, config={"order": ORDER}
    )
    ledger.finish_pipeline_run(first, ExitClass.OK)
    second = ledger.begin_pipeline_run("demo", {"name": "demo", "seed": 7}, trigger="prefect")
    ledger.record_node(second, "curate", stage="curate", how=NodeOutcome.HIT, reason="same key", run_id=curate)
    ledger.record_node(second, "encode", stage="encode", how=NodeOutcome.FAILED, reason="no lock file", stage_key=None)
    ledger.finish_pipeline_run(second, ExitClass.CONFIG, "encode: no lock file")
    ledger.move_channel("prod", CHECKPOINT.artifact_id, expected=None, moved_by="ana", reason="first")
    case = ledger.open_takedown(
        {"clips": ["x"]}, reason="asked", requested_by="ana", policy={}, blocks={}, clips=[],
        artifacts=[(DATASET.artifact_id, "dataset", "contains")],
    )  # fmt: skip
    return {
        "first": first, "second": second, "curate": curate, "encode": encode, "train": train, "failed": failed,
        "drained": drained, "case": case.takedown_id,
    }  # fmt: skip


class HttpSink:
    """A server on localhost. `script` says how to meet the next requests, one word each; then all is well.

    `503`, `400`, `401`, `302`: that status, nothing kept. `hang`: no answer before `let_go` or the end of `hang_s`,
    nothing kept. `reset`: the connection is cut before it is read. `lost-answer`: the event is kept, and then the
    connection is cut.
    """

    def __init__(self, *script: str, hang_s: float = 100.0) -> None:
        self.script, self.hang_s, self.let_go = list(script), hang_s, threading.Event()
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self) -> str:
        with self._lock:
            return self.script.pop(0) if self.script else "200"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                word = sink._next()
                if word == "reset":
                    return self._cut()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if word in ("200", "lost-answer"):
                    with sink._lock:
                        sink.received.append(body)
                        sink.headers.append({**dict(self.headers), "path": self.path})
                if word == "lost-answer":
                    return self._cut()
                if word == "hang":
                    sink.let_go.wait(sink.hang_s)
                    return self._cut()
                self.send_response(int(word))
                if word == "302":
                    self.send_header("Location", f"{sink.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None

            def do_GET(self) -> None:
                raise AssertionError("an event arrived as a GET")

            def _cut(self) -> None:
                linger = struct.pack("ii", 1, 0)  # close with a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()

            def log_message(self, *_: object) -> None: ...

        return Handler
