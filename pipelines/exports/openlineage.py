"""Ledger events as OpenLineage events: a pipeline run is the parent, each attempt of a stage (or cache hit) a run.

The mapping reads only immutable rows and the event itself, so an event maps to the same bytes on every delivery.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from m4v.core.artifacts import ArtifactKind
from pipelines.exports.facets import DATASET_EVENT, RUN_EVENT, facet, our_facet
from pipelines.exports.ids import producer, program_version, run_uuid
from pipelines.exports.openlineage_facts import (
    artifact_facts,
    attempt_facts,
    code_of,
    dataset_name,
    exposure_facts,
    run_facts,
)
from pipelines.ledger import ArtifactRow, EventRow, Ledger, PortRow, RunRow, Status
from pipelines.ledger.types import iso

OpenLineageEvent = dict[str, Any]
_CACHED_RUNS = 64
_ENDS = {Status.SUCCEEDED: "COMPLETE", Status.DRAINED: "ABORT"}  # a gate that refused is a FAIL like a fault
_TYPES = {ArtifactKind.CHECKPOINT: "MODEL", ArtifactKind.WEIGHTS: "MODEL"}
_ROWS = {ArtifactKind.DATASET: "samples", ArtifactKind.CLIPS: "clips", ArtifactKind.SAMPLES: "videos"}


class OpenLineageMapper:
    """Maps events of one ledger. `namespace` holds jobs and datasets, `repository` is an https URL of the code."""

    def __init__(self, ledger: Ledger, namespace: str, repository: str | None = None) -> None:
        self._ledger, self._namespace, self._repository = ledger, namespace, repository
        self._pipeline = lru_cache(_CACHED_RUNS)(ledger.pipeline_run)

    def map(self, event: EventRow) -> list[OpenLineageEvent]:
        """What the event means in OpenLineage; an empty list when it has no bearing there."""
        match event.kind:
            case "pipeline.begun":
                return [self._pipeline_event(event, "START")]
            case "pipeline.finished":
                return [self._pipeline_event(event, _end(event.payload["status"]))]
            case "attempt.begun":
                return [self._attempt_event(event, "START")]
            case "attempt.finished":
                return [self._attempt_event(event, _end(event.payload["status"]))]
            case "pipeline.node":
                return self._node_events(event)
            case "channel.moved":
                return [self._channel_event(event)]
            case "artifact.withdrawn" | "artifact.gone":
                return [self._end_event(event)]
        return []

    # Runs

    def _pipeline_event(self, event: EventRow, state: str) -> OpenLineageEvent:
        run = self._pipeline(event.subject)
        facets = {
            "m4v_pipeline": our_facet(
                "PipelineRunFacet",
                {
                    "pipelineRunId": run.pipeline_run_id,
                    "recipe": run.recipe,
                    "recipeDigest": run.recipe_digest,
                    "trigger": run.trigger,
                },
            ),
            **self._common(event.payload, state),
        }
        job = self._job(run.recipe, "PIPELINE", {})
        return self._run_event(event, state, run_uuid(run.pipeline_run_id), facets, job)

    def _attempt_event(self, event: EventRow, state: str) -> OpenLineageEvent:
        attempt = self._ledger.attempt(event.subject)
        run = self._run_of(event.payload.get("run_id"))
        facets = {
            "m4v_stage": our_facet("StageRunFacet", attempt_facts(attempt, run)),
            **self._parent(attempt.pipeline_run_id),
            **self._common(event.payload, state),
        }
        job = self._job(self._stage_job(attempt.pipeline_run_id, attempt.node_id, attempt.stage), "STAGE", code_of(run))
        return self._run_event(event, state, run_uuid(attempt.attempt_id), facets, job, run)

    def _node_events(self, event: EventRow) -> list[OpenLineageEvent]:
        """A cache hit, or a stage that failed before it had an attempt; other nodes speak by their attempts."""
        payload = event.payload
        if "reuse" in payload:
            identity, end = payload["reuse"]["reuse_id"], "COMPLETE"
        elif payload["how"] in ("failed", "drained") and not self._was_attempted(event):
            identity, end = f"{event.subject} {payload['node_id']}", _end(payload["how"])
        else:
            return []
        run = self._run_of(payload.get("run_id"))
        told = {
            "stage": payload["stage"],
            "stageKey": payload["stage_key"],
            "reason": payload["reason"],
            "reusedRunId": payload.get("run_id"),
        }
        stage = our_facet("StageRunFacet", {**(run_facts(run) if run else {}), **told})
        job = self._job(self._stage_job(event.subject, payload["node_id"], payload["stage"]), "STAGE", code_of(run))
        begun = {"m4v_stage": stage, **self._parent(event.subject), **self._common({}, "START")}
        ended = {**begun, **self._common({"message": payload["reason"]}, end)}
        return [
            self._run_event(event, "START", run_uuid(identity), begun, job, run),
            self._run_event(event, end, run_uuid(identity), ended, job, run),
        ]

    def _was_attempted(self, event: EventRow) -> bool:
        if event.payload.get("attempt_id"):
            return True
        attempts = self._ledger.attempts(pipeline_run_id=event.subject, limit=None)
        return any(a.node_id == event.payload["node_id"] for a in attempts)

    def _run_event(
        self,
        event: EventRow,
        state: str,
        run_id: str,
        facets: Mapping[str, Any],
        job: Mapping[str, Any],
        run: RunRow | None = None,
    ) -> OpenLineageEvent:
        return {
            "eventType": state,
            "eventTime": iso(event.at),
            "producer": producer(),
            "schemaURL": RUN_EVENT,
            "run": {"runId": run_id, "facets": dict(facets)},
            "job": dict(job),
            "inputs": [self._dataset(port) for port in run.inputs] if run else [],
            "outputs": [self._output(port, run) for port in run.outputs] if run else [],
        }

    def _run_of(self, run_id: str | None) -> RunRow | None:
        return None if run_id is None else self._ledger.run(run_id)

    def _common(self, payload: Mapping[str, Any], state: str) -> dict[str, Any]:
        facets = {"processing_engine": facet("ProcessingEngineRunFacet", {"version": program_version(), "name": "m4v"})}
        if state == "FAIL":
            said = payload.get("message") or "it ended without a word"
            facets["errorMessage"] = facet("ErrorMessageRunFacet", {"message": said, "programmingLanguage": "PYTHON"})
        return facets

    def _parent(self, pipeline_run_id: str | None) -> dict[str, Any]:
        if pipeline_run_id is None:
            return {}
        parent = {
            "run": {"runId": run_uuid(pipeline_run_id)},
            "job": {"namespace": self._namespace, "name": self._pipeline(pipeline_run_id).recipe},
        }
        return {"parent": facet("ParentRunFacet", {**parent, "root": parent})}

    # Jobs

    def _stage_job(self, pipeline_run_id: str | None, node_id: str | None, stage: str) -> str:
        if pipeline_run_id is None or node_id is None:
            return stage
        return f"{self._pipeline(pipeline_run_id).recipe}.{node_id}"

    def _job(self, name: str, kind: str, code: Mapping[str, Any]) -> dict[str, Any]:
        facets = {
            "jobType": facet("JobTypeJobFacet", {"processingType": "BATCH", "integration": "M4V", "jobType": kind})
        }
        if location := self._sourcecode_of(code):
            facets["sourceCodeLocation"] = facet("SourceCodeLocationJobFacet", location)
        return {"namespace": self._namespace, "name": name, "facets": facets}

    def _sourcecode_of(self, code: Mapping[str, Any]) -> dict[str, Any] | None:
        """The commit in the repository; without either, the digest of the code that the stage reaches."""
        commit, digest = code.get("commit"), code.get("digest")
        if commit and self._repository:
            return {
                "type": "git",
                "url": f"{self._repository}/tree/{commit}",
                "repoUrl": self._repository,
                "version": commit,
                "branch": code.get("branch"),
            }
        return {"type": "sha256", "url": f"urn:sha256:{digest}", "version": commit or digest} if digest else None

    # Datasets

    def _dataset(self, port: PortRow) -> dict[str, Any]:
        artifact = self._ledger.artifact(port.artifact_id, port.kind)
        return self._named(artifact, {"port": port.name})

    def _output(self, port: PortRow, run: RunRow) -> dict[str, Any]:
        artifact = self._ledger.artifact(port.artifact_id, port.kind)
        dataset = self._named(artifact, {"port": port.name})
        if exposure := exposure_facts(artifact, run):
            dataset["facets"]["m4v_exposure"] = our_facet("ExposureDatasetFacet", exposure)
        rows = artifact.summary.get(_ROWS.get(artifact.kind, ""))
        if isinstance(rows, int):
            statistics = facet("OutputStatisticsOutputDatasetFacet", {"rowCount": rows, "size": artifact.size_bytes})
            dataset["outputFacets"] = {"outputStatistics": statistics}
        return dataset

    def _named(self, artifact: ArtifactRow, more: Mapping[str, Any]) -> dict[str, Any]:
        kind = _TYPES.get(artifact.kind, "FILE")
        return {
            "namespace": self._namespace,
            "name": dataset_name(artifact.kind, artifact.artifact_id),
            "facets": {
                "version": facet("DatasetVersionDatasetFacet", {"datasetVersion": artifact.artifact_id}),
                "datasetType": facet("DatasetTypeDatasetFacet", {"datasetType": kind, "subType": str(artifact.kind)}),
                "m4v_artifact": our_facet("ArtifactDatasetFacet", {**artifact_facts(artifact), **more}),
            },
        }

    def _channel_event(self, event: EventRow) -> OpenLineageEvent:
        payload = event.payload
        dataset = self._named(self._ledger.artifact(payload["artifact_id"]), {})
        tag = {"key": "channel", "value": event.subject, "source": "M4V"}
        dataset["facets"]["tags"] = facet("TagsDatasetFacet", {"tags": [tag]})
        moved = {"channel": event.subject, "seq": payload["seq"], "previousArtifactId": payload.get("from")}
        dataset["facets"]["m4v_channel"] = our_facet("ChannelDatasetFacet", moved)
        return _dataset_event(event, dataset)

    def _end_event(self, event: EventRow) -> OpenLineageEvent:
        """A takedown withdrew the artifact, or its bytes were deleted."""
        payload = event.payload
        dataset = self._named(self._ledger.artifact(event.subject, payload["kind"]), {})
        if event.kind == "artifact.gone":
            drop = facet("LifecycleStateChangeDatasetFacet", {"lifecycleStateChange": "DROP"})
            dataset["facets"]["lifecycleStateChange"] = drop
        else:
            tag = {"key": "withdrawn", "value": payload["takedown_id"], "source": "M4V"}
            dataset["facets"]["tags"] = facet("TagsDatasetFacet", {"tags": [tag]})
        return _dataset_event(event, dataset)


def _dataset_event(event: EventRow, dataset: dict[str, Any]) -> OpenLineageEvent:
    return {
        "eventTime": iso(event.at),
        "producer": producer(),
        "schemaURL": DATASET_EVENT,
        "dataset": dataset,
    }


def _end(status: str) -> str:
    known = [s for s in Status if s == status]
    return _ENDS.get(known[0], "FAIL") if known else "FAIL"
