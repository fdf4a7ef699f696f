"""What the evaluation gates said of a checkpoint, by lineage: checkpoint, samples, scores (and a suite's), verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from m4v.core.artifacts import ArtifactKind
from pipelines.ledger import Ledger, RunRow

GENERATE, EVALUATE, VBENCH, GATE = "generate", "evaluate", "vbench", "gate"
MEASURING = (EVALUATE, VBENCH)
CANDIDATE, SUITE = "scores", "suite"  # the gate's inputs that are judged; its other one is the baseline


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
    """Every verdict on a checkpoint, newest first; those in which it was only the baseline do not count, nor those that
    judged the suite's scores of another one beside it."""
    measured = {stage: _measured(ledger, checkpoint, stage) for stage in MEASURING}
    found: dict[str, Verdict] = {}
    for ways in measured.values():
        for scores, made in ((scores, made) for scores, every in ways.items() for made in every):
            for run in ledger.consumers(scores):
                inputs = {port.name: port.artifact_id for port in run.inputs}
                if run.stage != GATE or inputs.get(CANDIDATE) != scores:
                    continue
                suite = inputs.get(SUITE)
                for further in [{}] if suite is None else measured[VBENCH].get(suite, []):
                    digests = made | further
                    found.setdefault(f"{run.run_id} {digests}", _verdict(ledger, run, digests))
    return sorted(found.values(), key=lambda v: (v.at, v.run_id), reverse=True)


def _measured(ledger: Ledger, checkpoint: str, stage: str) -> dict[str, list[dict[str, str]]]:
    """Scores of a checkpoint that a stage made, and the digests of how: of its config and of its samples'."""
    sampled = GENERATE if stage == EVALUATE else f"{stage}_{GENERATE}"
    found: dict[str, list[dict[str, str]]] = {}
    for samples, generate in _made_from(ledger, checkpoint, GENERATE):
        for scores, run in _made_from(ledger, samples, stage):
            found.setdefault(scores, []).append({stage: run.config_digest, sampled: generate.config_digest})
    return found


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
