"""A ledger and a store in which stages are run by hand: real bytes, real claims, no processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.canonical import digest_json
from m4v.core.stage import InputRef, OutputResult
from pipelines.ledger import Ledger, NewRun
from pipelines.ledger.database import parse_url
from pipelines.store import ArtifactRecord, ArtifactStore


@dataclass
class House:
    ledger: Ledger
    store: ArtifactStore
    staging: Path
    url: str = ""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def publish(
        self, kind: ArtifactKind, content: str, summary: Mapping[str, Any] | None = None, size: int = 1
    ) -> ArtifactRecord:
        """An artifact of two files whose bytes are told by `content`."""
        return self.store.publish(self.stage(kind, content, summary, size))

    def stage(
        self, kind: ArtifactKind, content: str, summary: Mapping[str, Any] | None = None, size: int = 1
    ) -> OutputResult:
        """What a stage process leaves."""
        folder = self.staging / str(next(self.numbers))
        folder.mkdir(parents=True)
        (folder / "data").write_text(content * size)
        (folder / "more").write_text(content)
        manifest = build_manifest(folder, kind, dict(summary or {}))
        write_manifest(folder, manifest)
        return OutputResult(
            name="out", kind=kind, artifact_id=manifest.artifact_id, staging=str(folder),
            size_bytes=manifest.size_bytes, files=2,
        )  # fmt: skip

    def run(
        self,
        stage: str,
        outputs: Mapping[str, ArtifactRecord],
        inputs: Mapping[str, ArtifactRecord] | None = None,
        *,
        pipeline_run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> str:
        """Commit a run of a stage; its key is of its inputs, outputs and config."""
        ins = {name: a.artifact_id for name, a in (inputs or {}).items()}
        outs = {name: a.artifact_id for name, a in outputs.items()}
        key = key or digest_json({"stage": stage, "in": ins, "out": outs, "config": dict(config or {})})
        claim = self.ledger.claim(key, "tester")
        attempt = self.ledger.begin_attempt(
            claim, stage=stage, work_dir="work", log_path="log", pipeline_run_id=pipeline_run_id, node_id=stage
        )
        new = NewRun(
            stage=stage, stage_version=1, stage_key=key, key_record={"stage": stage}, config=dict(config or {}),
            code_digest="c" * 64, seed=0,
        )  # fmt: skip
        refs = [InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in (inputs or {}).items()]
        run_id = self.ledger.commit_run(claim, attempt, new, refs, outputs)
        self.ledger.release(claim)
        if pipeline_run_id is not None:
            self.ledger.record_node(
                pipeline_run_id, f"{stage}.{run_id}", stage=stage, how="ran", reason="first", stage_key=key,
                run_id=run_id, attempt_id=attempt,
            )  # fmt: skip
        return run_id

    def checkpoint(self, name: str, inputs: Mapping[str, ArtifactRecord] | None = None) -> ArtifactRecord:
        made = self.publish(ArtifactKind.CHECKPOINT, name)
        self.run("train", {"checkpoint": made}, inputs)
        return made

    def judge(
        self,
        checkpoint: ArtifactRecord,
        passed: bool,
        *,
        reasons: tuple[str, ...] = (),
        rules: str = "rules",
        prompts: str = "",
        pipeline_run_id: str | None = None,
    ) -> ArtifactRecord:
        """Samples (of `prompts`), scores and a gate's verdict of a checkpoint, beside an untrained baseline; the
        verdict."""
        base = self.publish(ArtifactKind.CHECKPOINT, "untrained")
        self.run("init", {"checkpoint": base})
        scores = {}
        for port, model in (("scores", checkpoint), ("baseline", base)):
            samples = self.publish(ArtifactKind.SAMPLES, f"samples of {model.artifact_id} {prompts}")
            self.run("generate", {"samples": samples}, {"checkpoint": model}, config={"prompts": prompts})
            scores[port] = self.publish(ArtifactKind.SCORES, f"scores of {model.artifact_id} {prompts}")
            self.run("evaluate", {"scores": scores[port]}, {"samples": samples})
        summary = {"passed": passed, "rules": 1, "refused": list(reasons)}
        verdict = self.publish(ArtifactKind.SCORES, f"{checkpoint.artifact_id} {passed} {rules} {prompts}", summary)
        self.run("gate", {"scores": verdict}, scores, config={"rules": rules}, pipeline_run_id=pipeline_run_id)
        return verdict

    def sql(self, *statements: str, guards: bool = True) -> None:
        """Change the database behind the ledger's back; `guards=False` first drops the append-only triggers."""
        engine = create_engine(parse_url(self.url))
        with engine.begin() as connection:
            if not guards and connection.dialect.name == "sqlite":
                for (name,) in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                    connection.execute(text(f"DROP TRIGGER {name}"))
            elif not guards:
                connection.execute(text("DROP FUNCTION m4v_refuse CASCADE"))
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()
