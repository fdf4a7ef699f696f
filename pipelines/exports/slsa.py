"""SLSA v1 provenance of an artifact: an in-toto Statement v1 over its files' digests, unsigned.

Sign the bytes with a tool of your choice; they are the same on every export of the same ledger.
"""

from __future__ import annotations

from typing import Any

from m4v.core.errors import InputError
from pipelines.exports.ids import program_version
from pipelines.exports.reading import artifact_of, manifest_of
from pipelines.ledger import ArtifactRow, AttemptRow, Ledger, PortRow, RunRow
from pipelines.ledger.types import iso

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:m4v-pipeline:stage:v1"
BUILDER = "urn:m4v-pipeline:launcher"
MERKLE = "m4vMerkleRoot"  # sha256 over the sorted paths, sizes and sha256 of an artifact's files


def statement(ledger: Ledger, identity: str) -> dict[str, Any]:
    """The statement of an artifact, by the first run that made it.

    Raises InputError for an unknown id or an artifact that no run made.
    """
    artifact = artifact_of(ledger, identity)
    runs = [r for r in ledger.producers(artifact.artifact_id) if _makes(r, artifact)]
    if not runs:
        raise InputError(
            "no run made this artifact: it was imported, so there is no build to state",
            value=artifact.artifact_id[:12],
            where=str(artifact.kind),
        )
    run, others = runs[0], runs[1:]
    attempt = ledger.attempt(run.attempt_id)
    return {
        "_type": STATEMENT,
        "subject": _subjects(artifact),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _external(ledger, run, attempt),
                "internalParameters": _internal(run, attempt),
                "resolvedDependencies": _dependencies(ledger, run),
            },
            "runDetails": {
                "builder": {
                    "id": f"{BUILDER}:{attempt.launcher}",
                    "version": {"m4v-pipeline": program_version(), **_libraries(run)},
                },
                "metadata": _metadata(run, attempt),
                "byproducts": [_byproduct(port) for port in run.outputs if port.artifact_id != artifact.artifact_id],
            },
            **({"m4v_sameOutputBy": [r.run_id for r in others]} if others else {}),
        },
    }


def artifact_uri(kind: str, artifact_id: str) -> str:
    """The name of an artifact outside its ledger: by content, wherever it lies."""
    return f"urn:m4v:{kind}:{artifact_id}"


def _makes(run: RunRow, artifact: ArtifactRow) -> bool:
    return any(p.artifact_id == artifact.artifact_id and p.kind is artifact.kind for p in run.outputs)


def _subjects(artifact: ArtifactRow) -> list[dict[str, Any]]:
    """The artifact as a whole, then each of its files; files of deleted bytes are not known any more."""
    whole = {
        "name": artifact_uri(artifact.kind, artifact.artifact_id),
        "digest": {MERKLE: artifact.artifact_id},
        "annotations": {"kind": str(artifact.kind), "files": artifact.files, "sizeBytes": artifact.size_bytes},
    }
    manifest = manifest_of(artifact)
    files = manifest.files if manifest else ()
    return [whole, *({"name": f.path, "digest": {"sha256": f.sha256}} for f in files)]


def _external(ledger: Ledger, run: RunRow, attempt: AttemptRow) -> dict[str, Any]:
    """What the user chose: stage, configuration, seed and inputs, with the recipe they were chosen in."""
    chosen: dict[str, Any] = {
        "stage": run.stage,
        "stageVersion": run.stage_version,
        "config": run.config,
        "seed": str(run.seed),
        "inputs": {p.name: artifact_uri(p.kind, p.artifact_id) for p in run.inputs},
    }
    if attempt.pipeline_run_id is not None:
        recipe = ledger.pipeline_run(attempt.pipeline_run_id)
        chosen["recipe"] = {"name": recipe.recipe, "sha256": recipe.recipe_digest, "node": attempt.node_id}
    return chosen


def _internal(run: RunRow, attempt: AttemptRow) -> dict[str, Any]:
    """What the platform added; nothing of it but the numerics may change a byte."""
    return {
        "stageKey": run.stage_key,
        "exactness": str(run.exactness),
        "numerics": run.environment.get("numerics"),
        "launcher": attempt.launcher,
        "pipelineRunId": attempt.pipeline_run_id,
    }


def _dependencies(ledger: Ledger, run: RunRow) -> list[dict[str, Any]]:
    """Input artifacts, packaged weights, the source files that the stage reaches with their commit, the lock file."""
    found = [_input(ledger, port) for port in run.inputs]
    code = run.environment.get("code")
    if isinstance(code, dict) and code.get("commit"):
        note = {"dirty": bool(code.get("dirty")), "branch": code.get("branch")}
        found.append({"name": "repository", "digest": {"gitCommit": code["commit"]}, "annotations": note})
    sources = run.key_record.get("code")
    if isinstance(sources, dict):
        found += [{"name": path, "digest": {"sha256": digest}} for path, digest in sorted(sources.items())]
    weights = run.key_record.get("weights")
    if isinstance(weights, dict):
        found += [{"name": f"weights {name}", "digest": {"sha256": d}} for name, d in sorted(weights.items())]
    if lock := run.key_record.get("lock_digest"):
        found.append({"name": "lock file", "digest": {"sha256": lock}})
    return found


def _input(ledger: Ledger, port: PortRow) -> dict[str, Any]:
    row = ledger.artifact(port.artifact_id, port.kind)
    return {
        "name": port.name,
        "uri": artifact_uri(port.kind, port.artifact_id),
        "digest": {MERKLE: port.artifact_id},
        "annotations": {"kind": str(port.kind), "sizeBytes": row.size_bytes},
    }


def _libraries(run: RunRow) -> dict[str, str]:
    libraries = run.environment.get("libraries")
    known = libraries if isinstance(libraries, dict) else {}
    return {**{str(k): str(v) for k, v in sorted(known.items())}, "python": str(run.environment.get("python", ""))}


def _metadata(run: RunRow, attempt: AttemptRow) -> dict[str, str]:
    finished = attempt.finished_at or run.committed_at
    return {
        "invocationId": f"urn:m4v:attempt:{attempt.attempt_id}",
        "startedOn": iso(attempt.started_at),
        "finishedOn": iso(finished),
    }


def _byproduct(port: PortRow) -> dict[str, Any]:
    return {
        "name": port.name,
        "uri": artifact_uri(port.kind, port.artifact_id),
        "digest": {MERKLE: port.artifact_id},
    }
