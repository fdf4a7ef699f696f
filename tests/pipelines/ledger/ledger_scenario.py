"""Helpers of the ledger tests: a scenario that runs stages, and forked children."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import create_engine, text

from m4v.core.artifacts import ArtifactKind
from m4v.core.canonical import digest_json
from m4v.core.stage import InputRef
from pipelines.ledger import Ledger, NewRun
from pipelines.ledger.database import parse_url
from pipelines.store import ArtifactRecord


def artifact(name: str, kind: ArtifactKind = ArtifactKind.DATASET) -> ArtifactRecord:
    """An artifact record whose id is the digest of `name`."""
    return ArtifactRecord(
        artifact_id=digest_json(name),
        kind=kind,
        uri=f"store/{name}",
        size_bytes=len(name),
        files=1,
        summary={"of": name},
    )


def reference(record: ArtifactRecord, name: str) -> InputRef:
    return InputRef(name=name, kind=record.kind, artifact_id=record.artifact_id, uri=record.uri)


def new_run(key: str, stage: str = "encode", **changes: object) -> NewRun:
    facts = {
        "stage": stage,
        "stage_version": 1,
        "stage_key": key,
        "key_record": {"stage": stage, "seed": 7},
        "config": {"width": 64},
        "code_digest": "c" * 64,
        "seed": 7,
        "environment": {"python": "3.11"},
    }
    return NewRun(**{**facts, **changes})  # type: ignore[arg-type]


@dataclass
class Scenario:
    """Runs stages through a ledger the way an orchestrator does."""

    ledger: Ledger
    url: str
    attempts: list[str] = field(default_factory=list)

    def run(
        self,
        key: str,
        outputs: Mapping[str, ArtifactRecord],
        inputs: Mapping[str, ArtifactRecord] | None = None,
        *,
        stage: str = "encode",
        pipeline_run_id: str | None = None,
        node_id: str | None = None,
        metrics: Mapping[str, object] | None = None,
    ) -> str:
        claim = self.ledger.claim(key, "tester")
        attempt = self.ledger.begin_attempt(
            claim, stage=stage, work_dir="work", log_path="log", pipeline_run_id=pipeline_run_id, node_id=node_id
        )
        self.attempts.append(attempt)
        references = [reference(a, name) for name, a in (inputs or {}).items()]
        run_id = self.ledger.commit_run(claim, attempt, new_run(key, stage), references, outputs, metrics)
        self.ledger.release(claim)
        return run_id

    def sql(self, *statements: str, guards: bool = True) -> None:
        """Change the database behind the ledger's back; `guards=False` first drops the append-only triggers."""
        engine = create_engine(parse_url(self.url))
        with engine.begin() as connection:
            if not guards:
                _drop_triggers(connection)
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()


def _drop_triggers(connection) -> None:  # type: ignore[no-untyped-def]
    if connection.dialect.name == "sqlite":
        for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(text(f"DROP TRIGGER {name}"))
    else:
        connection.execute(text("DROP FUNCTION m4v_refuse CASCADE"))


def start_child(function: Callable[[], object]) -> int:
    """Run `function` in a forked child; its exit code is 0 unless it raised. Returns the pid."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def wait_child(pid: int) -> int:
    """Exit code of a child, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
