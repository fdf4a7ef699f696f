"""What the evaluation gates said of a checkpoint, by lineage: checkpoint, samples, scores, verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import Ledger, RunRow

GENERATE, EVALUATE, GATE = "generate", "evaluate", "gate"
CANDIDATE = "scores"  # the gate's input that is judged; its other one is the baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One gate's word. `reasons` are of the rules that did not hold; `config_digest` is of the gate's rules; `gate`
    has all digests by which a channel's policy may pin it (`GatePin`)."""

    artifact_id: str
    run_id: str
    passed: bool
    reasons: tuple[str, ...]
    rules: int
    config_digest: str
    gate: Mapping[str, str]
    at: datetime

    def to_json(self) -> dict[str, object]:
        return {
            "artifact_id": self.artifact_id, "run_id": self.run_id, "passed": self.passed,
            "reasons": list(self.reasons), "rules": self.rules, "config_digest": self.config_digest,
            "gate": dict(self.gate),
        }  # fmt: skip


def gate_verdicts(ledger: Ledger, checkpoint: str) -> list[Verdict]:
    """Every verdict on a checkpoint, newest first; those in which it was only the baseline do not count."""
    found: dict[str, Verdict] = {}
    for samples, generate in _made_from(ledger, checkpoint, GENERATE):
        for scores, evaluate in _made_from(ledger, samples, EVALUATE):
            for run in ledger.consumers(scores):
                judged = any(p.name == CANDIDATE and p.artifact_id == scores for p in run.inputs)
                if run.stage == GATE and judged:
                    made = {"evaluate": evaluate.config_digest, "generate": generate.config_digest}
                    found.setdefault(f"{run.run_id} {made}", _verdict(ledger, run, made))
    return sorted(found.values(), key=lambda v: (v.at, v.run_id), reverse=True)


def _made_from(ledger: Ledger, artifact_id: str, stage: str) -> Iterator[tuple[str, RunRow]]:
    """What runs of a stage made from an artifact, each with its run; made twice by one config, once."""
    seen = set()
    for run in ledger.consumers(artifact_id):
        for port in run.outputs if run.stage == stage else ():
            if (port.artifact_id, run.config_digest) not in seen:
                seen.add((port.artifact_id, run.config_digest))
                yield port.artifact_id, run


def _verdict(ledger: Ledger, run: RunRow, made: Mapping[str, str]) -> Verdict:
    """The verdict stands in the artifact's summary, a row that the event chain witnesses: its bytes are not needed."""
    port, pipeline = run.outputs[0], ledger.attempt(run.attempt_id).pipeline_run_id
    recipe = {"recipe": ledger.pipeline_run(pipeline).recipe_digest} if pipeline is not None else {}
    summary = ledger.artifact(port.artifact_id, ArtifactKind.SCORES).summary
    return Verdict(
        artifact_id=port.artifact_id,
        run_id=run.run_id,
        passed=summary.get("passed") is True,
        reasons=tuple(str(reason) for reason in summary.get("refused", ())),
        rules=int(summary.get("rules", 0)),
        config_digest=run.config_digest,
        gate={"rules": run.config_digest, **made, **recipe},
        at=run.committed_at,
    )
