"""What the evaluation gates said of a checkpoint, by lineage: checkpoint, samples, scores, verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import Ledger, RunRow

GENERATE, EVALUATE, GATE = "generate", "evaluate", "gate"
CANDIDATE = "scores"  # the gate's input that is judged; its other one is the baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One gate's word. `reasons` are of the rules that did not hold; `config_digest` is of the gate's rules."""

    artifact_id: str
    run_id: str
    passed: bool
    reasons: tuple[str, ...]
    rules: int
    config_digest: str
    at: datetime

    def to_json(self) -> dict[str, object]:
        return {
            "artifact_id": self.artifact_id, "run_id": self.run_id, "passed": self.passed,
            "reasons": list(self.reasons), "rules": self.rules, "config_digest": self.config_digest,
        }  # fmt: skip


def gate_verdicts(ledger: Ledger, checkpoint: str) -> list[Verdict]:
    """Every verdict on a checkpoint, newest first; those in which it was only the baseline do not count."""
    found: dict[str, Verdict] = {}
    for samples in _made_from(ledger, checkpoint, GENERATE):
        for scores in _made_from(ledger, samples, EVALUATE):
            for run in ledger.consumers(scores):
                judged = any(p.name == CANDIDATE and p.artifact_id == scores for p in run.inputs)
                if run.stage == GATE and judged:
                    found[run.run_id] = _verdict(ledger, run)
    return sorted(found.values(), key=lambda v: (v.at, v.run_id), reverse=True)


def _made_from(ledger: Ledger, artifact_id: str, stage: str) -> Iterable[str]:
    runs = [run for run in ledger.consumers(artifact_id) if run.stage == stage]
    return dict.fromkeys(port.artifact_id for run in runs for port in run.outputs)


def _verdict(ledger: Ledger, run: RunRow) -> Verdict:
    """The verdict stands in the artifact's summary, a row that the event chain witnesses: its bytes are not needed."""
    port = run.outputs[0]
    summary = ledger.artifact(port.artifact_id, ArtifactKind.SCORES).summary
    return Verdict(
        artifact_id=port.artifact_id,
        run_id=run.run_id,
        passed=summary.get("passed") is True,
        reasons=tuple(str(reason) for reason in summary.get("refused", ())),
        rules=int(summary.get("rules", 0)),
        config_digest=run.config_digest,
        at=run.committed_at,
    )
