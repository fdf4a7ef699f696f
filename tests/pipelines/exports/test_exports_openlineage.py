"""OpenLineage events: what they say, that the published schemas accept them, and that they never vary."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import jsonschema
import pytest
from exports_history import CHECKPOINT, CLIPS, DATASET, ORDER, small_history
from referencing import Registry, Resource

import pipelines.exports
from m4v.core.errors import InputError
from pipelines.exports import facets
from pipelines.exports.formats import Format, export
from pipelines.exports.ids import run_uuid
from pipelines.exports.openlineage import OpenLineageMapper
from pipelines.ledger import Ledger, new_id

OURS = Path(pipelines.exports.__file__).parent / "facet_schemas.json"
CHECKER = jsonschema.FormatChecker(formats=())


@CHECKER.checks("uri")
def _is_uri(value: object) -> bool:
    return not isinstance(value, str) or bool(urlsplit(value).scheme and re.fullmatch(r"[!-~]+", value))


@CHECKER.checks("uuid", raises=ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(UUID(value)) == value


@CHECKER.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@pytest.fixture(scope="module")
def registry() -> Registry[Any]:
    published = json.loads((Path(__file__).parent / "openlineage_schemas.json").read_text())["schemas"]
    schemas = [*published, json.loads(OURS.read_text())]
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
    found: Registry[Any] = Registry()
    for schema in schemas:
        draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        found = found.with_resource(schema["$id"], Resource.from_contents(draft))
    return found


def validate(registry: Registry[Any], event: dict[str, Any]) -> int:
    """Check an event and each of its facets against the schema that it names; returns how many facets."""
    _check(registry, event, event["schemaURL"])
    found = list(_facets(event))
    for value in found:
        _check(registry, value, value["_schemaURL"])
    return len(found)


def _check(registry: Registry[Any], value: object, url: str) -> None:
    validator = jsonschema.Draft202012Validator({"$ref": url}, registry=registry, format_checker=CHECKER)
    validator.validate(value)


def _facets(value: object) -> Any:
    if isinstance(value, dict):
        if "_schemaURL" in value:
            yield value
        for inner in value.values():
            yield from _facets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _facets(inner)


def mapped(ledger: Ledger, **settings: Any) -> list[dict[str, Any]]:
    mapper = OpenLineageMapper(ledger, settings.pop("namespace", "m4v"), **settings)
    return [e for event in ledger.events(limit=None) for e in mapper.map(event)]


def of_job(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [e for e in events if e.get("job", {}).get("name") == name]


def test_every_event_and_facet_satisfies_its_schema(
    ledger: Ledger, history: dict[str, str], registry: Registry[Any]
) -> None:
    events = mapped(ledger) + mapped(ledger, repository="https://example.org/m4v")
    counts = [validate(registry, event) for event in events]
    assert len(events) == 2 * 20
    assert min(counts) >= 2


def test_schemas_notice_what_is_wrong(ledger: Ledger, history: dict[str, str], registry: Registry[Any]) -> None:
    def broken(change: Any) -> None:
        event = json.loads(json.dumps(next(e for e in mapped(ledger) if e.get("outputs"))))
        change(event)
        with pytest.raises(jsonschema.ValidationError):
            validate(registry, event)

    broken(lambda e: e.pop("eventTime"))
    broken(lambda e: e.update(eventType="DONE"))
    broken(lambda e: e["run"].update(runId="7"))
    broken(lambda e: e["run"]["facets"]["parent"].pop("job"))
    broken(lambda e: e["run"]["facets"]["m4v_stage"].update(surprise=1))
    broken(lambda e: e["outputs"][0]["facets"]["m4v_artifact"].update(kind="movie"))
    broken(lambda e: e["job"]["facets"]["jobType"].pop("_producer"))


def test_each_run_starts_once_and_ends_once(ledger: Ledger, history: dict[str, str]) -> None:
    states: dict[str, list[str]] = {}
    for event in mapped(ledger):
        if "run" in event:
            states.setdefault(event["run"]["runId"], []).append(event["eventType"])
    ends = sorted(s[1] for s in states.values())
    assert all(len(s) == 2 and s[0] == "START" for s in states.values())
    # Two pipeline runs, five attempts, a hit, and a stage that failed before it had an attempt.
    assert ends == ["ABORT", *["COMPLETE"] * 5, *["FAIL"] * 3]


def test_stage_run_names_parent_datasets_and_versions(ledger: Ledger, history: dict[str, str]) -> None:
    events = mapped(ledger, namespace="team")
    start, end = [e for e in of_job(events, "demo.encode") if e["run"]["runId"] == _uuid_of(ledger, history["encode"])]
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert end["job"]["namespace"] == "team"
    parent = end["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == run_uuid(history["first"])
    assert parent["job"] == {"namespace": "team", "name": "demo"}
    assert parent["root"] == {"run": parent["run"], "job": parent["job"]}
    (clips,), (dataset,) = end["inputs"], end["outputs"]
    assert clips["name"] == f"clips/{CLIPS.artifact_id}"
    assert dataset["facets"]["version"]["datasetVersion"] == DATASET.artifact_id
    assert dataset["outputFacets"]["outputStatistics"]["rowCount"] == 17
    # What one run writes is what the next one reads.
    train = [e for e in of_job(events, "demo.train.t2i") if e["eventType"] == "COMPLETE"]
    assert (train[0]["inputs"][0]["name"], train[0]["inputs"][0]["namespace"]) == (dataset["name"], "team")
    run = ledger.run(history["encode"])
    stage = end["run"]["facets"]["m4v_stage"]
    assert (stage["stageKey"], stage["exactness"], stage["runId"]) == (run.stage_key, "bit-exact", run.run_id)


def _uuid_of(ledger: Ledger, run_id: str) -> str:
    return run_uuid(ledger.run(run_id).attempt_id)


def test_checkpoint_carries_what_fixes_its_exposure(ledger: Ledger, history: dict[str, str]) -> None:
    end = next(e for e in of_job(mapped(ledger), "demo.train.t2i") if e["eventType"] == "COMPLETE")
    exposure = end["outputs"][0]["facets"]["m4v_exposure"]
    told = {k: exposure[k] for k in ("datasetId", "steps", "seed", "order", "stage")}
    assert told == {"datasetId": DATASET.artifact_id, "steps": 4, "seed": "7", "order": ORDER, "stage": "t2i"}
    assert end["outputs"][0]["facets"]["datasetType"]["datasetType"] == "MODEL"


def test_failure_and_drain_say_why(ledger: Ledger, history: dict[str, str]) -> None:
    events = mapped(ledger)
    failed = next(
        e for e in events if e.get("run", {}).get("runId") == run_uuid(history["failed"]) and e["eventType"] != "START"
    )
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == "bytes differ: 'x'"
    drained = [e for e in events if e.get("run", {}).get("runId") == run_uuid(history["drained"])]
    assert [e["eventType"] for e in drained] == ["START", "ABORT"]
    early = [
        e
        for e in of_job(events, "demo.encode")
        if e["run"]["facets"]["parent"]["run"]["runId"] == run_uuid(history["second"])
    ]
    assert [e["eventType"] for e in early] == ["START", "FAIL"]
    assert early[1]["run"]["facets"]["errorMessage"]["message"] == "no lock file"


def test_cache_hit_is_a_run_that_names_the_run_it_reuses(ledger: Ledger, history: dict[str, str]) -> None:
    second = run_uuid(history["second"])
    events = [
        e for e in of_job(mapped(ledger), "demo.curate") if e["run"]["facets"]["parent"]["run"]["runId"] == second
    ]
    assert [e["eventType"] for e in events] == ["START", "COMPLETE"]
    stage = events[1]["run"]["facets"]["m4v_stage"]
    assert (stage["reusedRunId"], stage["reason"]) == (history["curate"], "same key")
    assert events[1]["outputs"][0]["name"] == f"clips/{CLIPS.artifact_id}"


def test_promotion_tags_the_checkpoint(ledger: Ledger, history: dict[str, str]) -> None:
    event = next(e for e in mapped(ledger) if "m4v_channel" in e.get("dataset", {}).get("facets", {}))
    assert event["dataset"]["name"] == f"checkpoint/{CHECKPOINT.artifact_id}"
    assert event["dataset"]["facets"]["tags"]["tags"] == [{"key": "channel", "value": "prod", "source": "M4V"}]


def test_withdrawal_tags_the_dataset_and_deleted_bytes_drop_it(
    ledger: Ledger, history: dict[str, str], registry: Registry[Any]
) -> None:
    event = mapped(ledger)[-1]
    assert event["dataset"]["name"] == f"dataset/{DATASET.artifact_id}"
    assert event["dataset"]["facets"]["tags"]["tags"] == [
        {"key": "withdrawn", "value": history["case"], "source": "M4V"}
    ]
    gone = replace(
        ledger.events(limit=None)[-1], kind="artifact.gone", subject=CLIPS.artifact_id, payload={"kind": "clips"}
    )
    (dropped,) = OpenLineageMapper(ledger, "m4v").map(gone)
    assert dropped["dataset"]["facets"]["lifecycleStateChange"]["lifecycleStateChange"] == "DROP"
    validate(registry, dropped)


def test_source_code_location_is_the_commit_or_the_code_digest(ledger: Ledger, history: dict[str, str]) -> None:
    def location(**settings: Any) -> dict[str, Any]:
        end = next(e for e in of_job(mapped(ledger, **settings), "demo.curate") if e["eventType"] == "COMPLETE")
        found: dict[str, Any] = end["job"]["facets"]["sourceCodeLocation"]
        return found

    git = location(repository="https://example.org/m4v")
    assert (git["type"], git["version"], git["url"]) == ("git", "e" * 40, f"https://example.org/m4v/tree/{'e' * 40}")
    assert location()["url"] == f"urn:sha256:{'c' * 64}"


def test_mapping_is_the_same_on_every_delivery(either_ledger: Ledger) -> None:
    small_history(either_ledger)
    first = json.dumps(mapped(either_ledger))
    either_ledger.begin_pipeline_run("other", {"name": "other"})
    count = len(json.loads(first))
    assert json.dumps(mapped(either_ledger)[:count]) == first


def test_run_ids_are_version_7_uuids_of_their_time() -> None:
    before = datetime.now(UTC)
    made = UUID(run_uuid(new_id()))
    assert made.version == 7
    assert abs((made.int >> 80) / 1000 - before.timestamp()) < 60
    ids = [new_id() for _ in range(50)]
    assert len({run_uuid(i) for i in ids}) == 50
    assert run_uuid(ids[0]) == run_uuid(ids[0])


def test_client_serializes_our_events_unchanged_and_knows_our_facet_versions(
    ledger: Ledger, history: dict[str, str]
) -> None:
    serde = importlib.import_module("openlineage.client.serde").Serde
    for event in mapped(ledger):
        assert json.loads(serde.to_json(event)) == event
    generated = importlib.import_module("openlineage.client.facet_v2")
    modules = [getattr(generated, name) for name in dir(generated)]
    for name in facets._VERSIONS:
        found = [getattr(m, name) for m in modules if hasattr(m, name)]
        assert found, f"the client has no {name}"
        assert found[0]._get_schema() == facets.facet(name, {})["_schemaURL"]


def test_export_of_run_pipeline_and_artifact(ledger: Ledger, history: dict[str, str]) -> None:
    def lines(identity: str) -> list[dict[str, Any]]:
        text = export(ledger, identity, Format.OPENLINEAGE)
        assert text == export(ledger, identity, Format.OPENLINEAGE)
        return [json.loads(line) for line in text.splitlines()]

    assert [e["eventType"] for e in lines(history["train"])] == ["START", "COMPLETE"]
    assert [e["eventType"] for e in lines(history["failed"])] == ["START", "FAIL"]
    whole = lines(history["first"])
    assert whole == [e for e in mapped(ledger) if e in whole]
    assert {e["job"]["name"] for e in whole} == {"demo", "demo.curate", "demo.encode", "demo.train.t2i"}
    made_from = [e["job"]["name"] for e in lines(CHECKPOINT.artifact_id) if e["eventType"] == "COMPLETE"]
    assert made_from == ["demo.curate", "demo.encode", "demo.train.t2i"]
    with pytest.raises(InputError, match="ledger has no such id"):
        export(ledger, "zzz", Format.OPENLINEAGE)
