"""A home with made-up checkpoints, samples and scores in a real ledger, their manifests and score files real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.records import SCORES, Identity, MetricScore, ScoreSet, SuiteIdentity, VideoScore, write_record
from m4v.core.artifacts import ArtifactKind, build_manifest, write_manifest
from m4v.core.stage import InputRef
from pipelines.ledger import Ledger, NewRun
from pipelines.store import ArtifactRecord

GOOD, BAD = "local.good", "local.noise"


class EvaluatedHome:
    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.root, self.ledger, self.count = root, ledger, 0
        self.cache = root / "cache"

    def record(self, kind: ArtifactKind, summary: dict[str, Any], scores: ScoreSet | None = None) -> ArtifactRecord:
        self.count += 1
        folder = self.root / f"artifact{self.count}"
        folder.mkdir()
        (folder / "number").write_text(str(self.count))
        if scores is not None:
            write_record(folder / SCORES, scores)
        manifest = build_manifest(folder, kind, summary)
        write_manifest(folder, manifest)
        return ArtifactRecord(
            artifact_id=manifest.artifact_id, kind=kind, uri=str(folder), size_bytes=manifest.size_bytes,
            files=len(manifest.files), summary=manifest.summary,
        )  # fmt: skip

    def run(
        self, stage: str, port: str, output: ArtifactRecord, inputs: Mapping[str, ArtifactRecord], **config: Any
    ) -> str:
        self.count += 1
        key = f"{self.count:064d}"
        claim = self.ledger.claim(key, "tester")
        attempt = self.ledger.begin_attempt(claim, stage=stage, work_dir="work", log_path="log")
        facts = NewRun(
            stage=stage, stage_version=1, stage_key=key, key_record={}, config=config, code_digest="c" * 64, seed=7
        )
        references = [InputRef(name=n, kind=a.kind, artifact_id=a.artifact_id, uri=a.uri) for n, a in inputs.items()]
        return self.ledger.commit_run(claim, attempt, facts, references, {port: output}, {})

    def evaluated(
        self, values: Sequence[float | None], *, steps: int = 8, stage: str = "57f", stand_in: Sequence[str] = ()
    ) -> tuple[str, str, Any]:
        """A trained checkpoint, its samples and their scores; (checkpoint id, scores id, scores record). `stand_in`:
        dimensions `good`, `noise` of a suite `local` that were measured with stand-in weights."""
        checkpoint = self.record(ArtifactKind.CHECKPOINT, {})
        self.run("train", "checkpoint", checkpoint, {}, name=stage)
        samples = self.record(ArtifactKind.SAMPLES, {})
        self.run("generate", "samples", samples, {"checkpoint": checkpoint})
        scores = self.record(ArtifactKind.SCORES, {}, score_set(checkpoint.artifact_id, values, steps, stand_in))
        self.run("evaluate", "scores", scores, {"samples": samples})
        return checkpoint.artifact_id, scores.artifact_id, scores

    def judged(self, values: Sequence[float | None], passed: bool, refused: Sequence[str] = ()) -> str:
        """A checkpoint on which a gate has spoken; its id."""
        checkpoint, _, scores = self.evaluated(values)
        self.judge(scores, passed, refused)
        return checkpoint

    def judge(
        self, scores: ArtifactRecord, passed: bool, refused: Sequence[str] = (), baseline: ArtifactRecord | None = None
    ) -> ArtifactRecord:
        summary = {"passed": passed, "refused": list(refused), "rules": 1}
        verdict = self.record(ArtifactKind.SCORES, summary)
        inputs = {"scores": scores} | ({"baseline": baseline} if baseline is not None else {})
        self.run("gate", "scores", verdict, inputs)
        return verdict


def score_set(checkpoint: str, values: Sequence[float | None], steps: int, stand_in: Sequence[str] = ()) -> ScoreSet:
    suite = SuiteIdentity(
        name="local", version="1", mode="standard", prompt_set="own", partial=False, videos={"good": 6, "noise": 6},
        environments={}, weights={"raft": "w"}, options={"published_weights": False, "stand_in": list(stand_in)},
    )  # fmt: skip
    identity = Identity(
        checkpoint=checkpoint, ema=True, sampler={"steps": steps}, codec={}, text_encoder={}, video_codec="h264",
        prompt_set="p" * 64, seed_rule="rule", base_seed=0, samples_per_prompt=1, frames=17, fps=24.0,
        height=64, width=64, metrics={GOOD: 1, BAD: 1}, metric_config={}, suite=suite if stand_in else None,
    )  # fmt: skip
    known = [v for v in values if v is not None]
    good = MetricScore(
        version=1, title="Good", unit="", description="more is better", higher_is_better=True, chance=None,
        mean=float(np.mean(known)) if known else None, count=len(known), values=tuple(values),
    )  # fmt: skip
    bad = good.model_copy(update={"title": "Noise", "higher_is_better": False})
    videos = tuple(
        VideoScore(
            file=f"{n}.mp4", prompt="p", prompt_index=n, sample_index=0, metrics={GOOD: v, BAD: v}, details={}
        )
        for n, v in enumerate(values)
    )  # fmt: skip
    return ScoreSet(identity=identity, metrics={GOOD: good, BAD: bad}, per_video=videos)
