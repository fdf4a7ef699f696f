"""A candidate against what a channel names now, by the scores that lineage finds for both."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.config import NonRegression
from eval.non_regression import judge_non_regression
from eval.pairing import BOOTSTRAP_SEED
from eval.records import SCORES, ScoreSet, read_record
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from pipelines.channels.gates import EVALUATE, GENERATE
from pipelines.ledger import Ledger

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """How a checkpoint stands against the one that a channel names; `reasons` are of the dimensions that fell."""

    against: str
    scores: str | None
    baseline: str | None
    passed: bool
    reasons: tuple[str, ...]
    dimensions: int

    def to_json(self) -> dict[str, object]:
        return {
            "against": self.against, "scores": self.scores, "baseline": self.baseline, "passed": self.passed,
            "reasons": list(self.reasons), "dimensions": self.dimensions,
        }  # fmt: skip


def regression(ledger: Ledger, rule: NonRegression, candidate: str, current: str) -> Regression:
    """Judge `candidate` against `current` (ids of checkpoints) by their newest scores of one protocol.

    Without any it did not pass: what was never compared is not let through. Raises ConfigError for a dimension that the
    scores do not have.
    """
    with tempfile.TemporaryDirectory() as cache:
        theirs = list(_scores(ledger, current, Path(cache)))
        for ours_id, ours in _scores(ledger, candidate, Path(cache)):
            for theirs_id, found in theirs:
                if not ours.identity.differences(found.identity):
                    rows = judge_non_regression(
                        rule, ours, found, resamples=RESAMPLES, confidence=CONFIDENCE, seed=BOOTSTRAP_SEED
                    )
                    reasons = tuple(row.reason for row in rows if not row.passed)
                    return Regression(
                        against=current, scores=ours_id, baseline=theirs_id, passed=not reasons, reasons=reasons,
                        dimensions=len(rows),
                    )  # fmt: skip
    never = f"{candidate[:12]} and {current[:12]} have no scores of one protocol (prompts, seeds, sampler, metrics)"
    return Regression(against=current, scores=None, baseline=None, passed=False, reasons=(never,), dimensions=0)


def _scores(ledger: Ledger, checkpoint: str, cache: Path) -> Iterator[tuple[str, ScoreSet]]:
    """Of a checkpoint, newest first; those whose bytes went, and other suites' records, are passed over."""
    runs = [
        run
        for made in ledger.consumers(checkpoint)
        if made.stage == GENERATE
        for samples in made.outputs
        for run in ledger.consumers(samples.artifact_id)
        if run.stage == EVALUATE
    ]
    ids = [port.artifact_id for run in sorted(runs, key=lambda r: r.committed_at, reverse=True) for port in run.outputs]
    for artifact_id in dict.fromkeys(ids):
        row = ledger.artifact(artifact_id, ArtifactKind.SCORES)
        artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
        if row.deletion is None and artifact.storage.exists(MANIFEST) and SCORES in artifact.names():
            yield artifact_id, read_record(ScoreSet, artifact, SCORES)
