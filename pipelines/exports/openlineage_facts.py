"""What our facets of OpenLineage events say of ledger rows, and which events tell of a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import InputError
from pipelines.ledger import ArtifactRow, AttemptRow, EventRow, Ledger, PipelineRunRow, RunRow


def dataset_name(kind: str, artifact_id: str) -> str:
    """A dataset's name is its artifact: two names are two contents, and a graph by names is one by contents."""
    return f"{kind}/{artifact_id}"


def events_of(ledger: Ledger, identity: str) -> Iterator[EventRow]:
    """The ledger's events that tell of a pipeline run, stage run, attempt, or an artifact with all it was made from,
    oldest first; raises InputError for an unknown id."""
    row = ledger.resolve(identity)
    if isinstance(row, PipelineRunRow):
        attempts = [a.attempt_id for a in ledger.attempts(pipeline_run_id=row.pipeline_run_id, limit=None)]
        return _in_order(ledger, [row.pipeline_run_id, *attempts])
    if isinstance(row, RunRow):
        return _in_order(ledger, _attempts_of(ledger, [row]))
    if isinstance(row, AttemptRow):
        return _in_order(ledger, [row.attempt_id])
    runs = [ledger.run(run_id) for run_id in ledger.lineage_up(row.artifact_id).runs]
    if not runs:
        raise InputError("no run made this artifact: it was imported", value=row.artifact_id, where=str(row.kind))
    return _in_order(ledger, _attempts_of(ledger, runs))


def _attempts_of(ledger: Ledger, runs: Iterable[RunRow]) -> list[str]:
    found = [a.attempt_id for run in runs for a in ledger.attempts(stage_key=run.stage_key, limit=None)]
    return list(dict.fromkeys(found))


def _in_order(ledger: Ledger, subjects: Iterable[str]) -> Iterator[EventRow]:
    events = [e for subject in subjects for e in ledger.events(subject=subject, limit=None)]
    return iter(sorted(events, key=lambda e: e.seq))


def code_of(run: RunRow | None) -> dict[str, Any]:
    if run is None:
        return {}
    recorded = run.environment.get("code")
    state = recorded if isinstance(recorded, Mapping) else {}
    return {"digest": run.code_digest, "commit": state.get("commit"), "branch": state.get("branch")}


def attempt_facts(attempt: AttemptRow, run: RunRow | None) -> dict[str, Any]:
    return {
        **(run_facts(run) if run else {}),
        "stage": attempt.stage,
        "stageKey": attempt.stage_key,
        "attemptId": attempt.attempt_id,
        "attempt": attempt.number,
        "launcher": attempt.launcher,
        "host": attempt.host,
    }


def run_facts(run: RunRow) -> dict[str, Any]:
    return {
        "runId": run.run_id,
        "stageVersion": run.stage_version,
        "exactness": str(run.exactness),
        "generation": run.generation,
        "codeDigest": run.code_digest,
        "configDigest": run.config_digest,
        "seed": str(run.seed),
    }


def artifact_facts(artifact: ArtifactRow) -> dict[str, Any]:
    return {
        "artifactId": artifact.artifact_id,
        "kind": str(artifact.kind),
        "files": artifact.files,
        "sizeBytes": artifact.size_bytes,
        "summary": artifact.summary,
    }


def exposure_facts(artifact: ArtifactRow, run: RunRow) -> dict[str, Any] | None:
    """What fixes which samples a checkpoint saw, as the run's row holds it; None for what was not trained."""
    ports = {p.kind: p.artifact_id for p in run.inputs}
    order = run.config.get("order")
    if artifact.kind is not ArtifactKind.CHECKPOINT or ArtifactKind.DATASET not in ports or order is None:
        return None
    return {
        "datasetId": ports[ArtifactKind.DATASET],
        "initFrom": ports.get(ArtifactKind.CHECKPOINT),
        "stage": artifact.summary.get("stage"),
        "steps": artifact.summary.get("step"),
        "seed": str(run.seed),
        "order": order,
    }
