"""Provenance and cards of a real micro run: held against the bytes they describe and against their standards."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from exports_history import CHECKPOINT, small_history

from m4v.core.artifacts import ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError
from pipelines.exports import croissant
from pipelines.exports.formats import Format, export
from pipelines.exports.markdown import code, table, text
from pipelines.exports.slsa import MERKLE
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.store import ArtifactRecord


@pytest.fixture
def micro(micro_home: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger of one's own on the artifacts that all share."""
    with (
        closing(sqlite3.connect(micro_home / "ledger.db")) as shared,
        closing(sqlite3.connect(tmp_path / "l.db")) as own,
    ):
        shared.backup(own)
    with Ledger.open(str(tmp_path / "l.db")) as ledger:
        yield ledger


@pytest.fixture
def own_micro(micro_copy: Path) -> Iterator[Ledger]:
    """With artifacts of one's own."""
    with Ledger.open(str(micro_copy / "ledger.db")) as ledger:
        yield ledger


def only(ledger: Ledger, kind: ArtifactKind) -> ArtifactRow:
    return ledger.artifacts(kind=kind, limit=1)[0]


def final_checkpoint(ledger: Ledger) -> ArtifactRow:
    return next(a for a in ledger.artifacts(kind=ArtifactKind.CHECKPOINT) if a.summary.get("stage") == "reward")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# SLSA


def test_slsa_statement_states_files_inputs_code_and_lock(micro: Ledger) -> None:
    row = final_checkpoint(micro)
    statement = json.loads(export(micro, row.artifact_id, Format.SLSA))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    whole, *files = statement["subject"]
    assert whole["digest"] == {MERKLE: row.artifact_id}
    root = Path(row.uri)
    assert {f["name"]: f["digest"]["sha256"] for f in files} == {
        p.relative_to(root).as_posix(): sha256_of(p)
        for p in root.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    run = micro.producers(row.artifact_id)[0]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["config"] == run.config
    assert definition["externalParameters"]["recipe"]["name"] == "micro"
    found = {d["name"]: d for d in definition["resolvedDependencies"]}
    for port in run.inputs:
        assert found[port.name]["digest"] == {MERKLE: port.artifact_id}
    for path, digest in run.key_record["code"].items():
        assert found[path]["digest"] == {"sha256": digest}
    assert found["lock file"]["digest"]["sha256"] == run.key_record["lock_digest"]
    details = statement["predicate"]["runDetails"]
    attempt = micro.attempt(run.attempt_id)
    assert details["metadata"]["invocationId"].endswith(attempt.attempt_id)
    assert details["metadata"]["startedOn"] < details["metadata"]["finishedOn"]
    assert details["builder"]["id"] == "urn:m4v-pipeline:launcher:local"


def test_slsa_of_every_artifact_has_what_the_standard_requires(micro: Ledger) -> None:
    for row in micro.artifacts(limit=None):
        value = json.loads(export(micro, row.artifact_id, Format.SLSA))
        assert set(value) == {"_type", "subject", "predicateType", "predicate"}
        assert value["subject"]
        assert all(s["digest"] and s["name"] for s in value["subject"])
        assert len({s["name"] for s in value["subject"]}) == len(value["subject"])
        definition, details = value["predicate"]["buildDefinition"], value["predicate"]["runDetails"]
        assert ":" in definition["buildType"]
        assert definition["externalParameters"]
        assert ":" in details["builder"]["id"]
        for resource in (*definition["resolvedDependencies"], *details["byproducts"]):
            assert any(resource.get(k) for k in ("uri", "digest", "content"))
            assert all(isinstance(d, str) and d for d in resource["digest"].values())


def test_slsa_of_imported_weights_is_refused_and_deleted_bytes_leave_the_root(own_micro: Ledger) -> None:
    weights = ArtifactRecord(
        artifact_id="a" * 64, kind=ArtifactKind.WEIGHTS, uri="/nowhere", size_bytes=1, files=1, summary={}
    )
    own_micro.import_artifact(weights)
    with pytest.raises(InputError, match="it was imported"):
        export(own_micro, weights.artifact_id, Format.SLSA)
    row = final_checkpoint(own_micro)
    shutil.rmtree(row.uri)
    subject = json.loads(export(own_micro, row.artifact_id, Format.SLSA))["subject"]
    assert [s["digest"] for s in subject] == [{MERKLE: row.artifact_id}]


def test_exports_are_the_same_bytes_every_time(micro: Ledger) -> None:
    dataset, checkpoint = only(micro, ArtifactKind.DATASET), final_checkpoint(micro)
    for row, formats in ((dataset, (Format.SLSA, Format.CROISSANT)), (checkpoint, (Format.SLSA, Format.MODELCARD))):
        for chosen in formats:
            first = export(micro, row.artifact_id, chosen)
            assert first == export(micro, row.artifact_id[:20], chosen)
            assert first.endswith("\n")


# Croissant

# What the vocabularies define of the classes that a card uses (schema.org, Croissant 1.1, Croissant RAI 1.0).
KNOWN = {
    "sc:Dataset": {
        "conformsTo", "name", "description", "version", "identifier", "url", "citeAs", "datePublished", "creator",
        "keywords", "license", "isLiveDataset", "distribution", "recordSet",
    },
    "sc:Organization": {"name"},
    "sc:CreativeWork": {"name", "description", "url"},
    "cr:FileObject": {"name", "description", "contentUrl", "contentSize", "encodingFormat", "sha256"},
    "cr:FileSet": {"name", "description", "encodingFormat", "includes"},
    "cr:RecordSet": {"name", "description", "key", "field"},
    "cr:Field": {"name", "description", "dataType", "source"},
}  # fmt: skip
RAI = {
    "dataCollection", "dataCollectionType", "dataCollectionMissingData", "dataPreprocessingProtocol",
    "machineAnnotationTools", "dataLimitations", "dataBiases", "dataUseCases", "personalSensitiveInformation",
    "dataReleaseMaintenancePlan",
}  # fmt: skip


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "@type" in value:
            yield value
        for key, inner in value.items():
            if key != "@context":
                yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_croissant_card_uses_only_words_of_its_vocabularies(micro: Ledger) -> None:
    card = json.loads(export(micro, only(micro, ArtifactKind.DATASET).artifact_id, Format.CROISSANT))
    assert card["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
    seen = Counter[str]()
    for node in nodes(card):
        seen[node["@type"]] += 1
        words = {k for k in node if not k.startswith("@") and not k.startswith("rai:")}
        assert words <= KNOWN[node["@type"]]
    assert seen["cr:Field"] == len(croissant.SCHEMA.names)
    assert {k.removeprefix("rai:") for k in card if k.startswith("rai:")} == RAI
    assert all(card[f"rai:{k}"] for k in RAI)


def test_croissant_card_describes_the_bytes_that_are_there(micro: Ledger) -> None:
    row = only(micro, ArtifactKind.DATASET)
    card = json.loads(export(micro, row.artifact_id, Format.CROISSANT))
    root = Path(row.uri)
    index, shards = card["distribution"]
    assert index["sha256"] == sha256_of(root / index["contentUrl"])
    assert index["contentSize"] == f"{(root / index['contentUrl']).stat().st_size} B"
    tars = list(root.rglob("*.tar"))
    assert tars
    assert all(fnmatch(p.relative_to(root).as_posix(), shards["includes"]) for p in tars)
    assert shards["description"].startswith(f"{len(tars)} WebDataset shards")
    table_ = pq.read_table(root / "index.parquet")
    fields = [f["source"]["extract"]["column"] for f in card["recordSet"][0]["field"]]
    assert fields == table_.column_names
    ids = {node["@id"] for node in nodes(card) if "@id" in node}
    assert card["recordSet"][0]["key"]["@id"] in ids
    assert {f["source"]["fileObject"]["@id"] for f in card["recordSet"][0]["field"]} <= ids
    counted = Counter(table_.column("licence").to_pylist())
    told = {node["name"]: node["description"] for node in card["license"]}
    assert told == {name: f"{count} of {table_.num_rows} samples" for name, count in counted.items()}
    assert len(told) > 1
    assert card["version"] == f"1.0.0+{row.artifact_id}"


def test_croissant_library_reads_the_samples_by_the_card(micro: Ledger, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    row = only(micro, ArtifactKind.DATASET)
    folder = tmp_path / "published"
    shutil.copytree(row.uri, folder)
    (folder / "croissant.json").write_text(export(micro, row.artifact_id, Format.CROISSANT))
    dataset = mlcroissant.Dataset(folder / "croissant.json")
    assert dataset.metadata.issues.errors == set()
    assert dataset.metadata.issues.warnings == set()
    records = list(dataset.records("samples"))
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    assert [r["samples/sample_id"].decode() for r in records] == [r["sample_id"] for r in rows]
    assert [r["samples/tokens"] for r in records] == [r["tokens"] for r in rows]


def test_croissant_card_needs_the_bytes_it_describes(own_micro: Ledger) -> None:
    row = only(own_micro, ArtifactKind.DATASET)
    shutil.rmtree(row.uri)
    with pytest.raises(DataIntegrityError, match="bytes are gone"):
        export(own_micro, row.artifact_id, Format.CROISSANT)


# Model card


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows_of(part: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("|")]


def test_model_card_tells_the_line_the_data_the_scores_and_the_verdict(micro: Ledger) -> None:
    row = final_checkpoint(micro)
    card = export(micro, row.artifact_id, Format.MODELCARD)
    assert card.startswith(f"# Checkpoint {row.artifact_id[:12]} (reward)\n")
    assert row.artifact_id in section(card, "What it is")
    line = rows_of(section(card, "Training"))[2:]
    assert [r[0] for r in line] == ["init", "t2i", "9f", "17f", "33f", "reward"]
    for cells in line:
        made = micro.artifact(cells[3].strip("`"))
        metrics = Path(made.uri) / "metrics.jsonl"
        steps = [json.loads(x) for x in metrics.read_text().splitlines()] if metrics.exists() else []
        assert cells[1] == str(made.summary["step"])
        assert cells[2] == str(sum(s["samples"] for s in steps))
        assert cells[7].strip("`") == micro.producers(made.artifact_id)[0].run_id
    data = section(card, "Data")
    dataset = only(micro, ArtifactKind.DATASET)
    licences = Counter(pq.read_table(Path(dataset.uri) / "index.parquet").column("licence").to_pylist())
    for name, count in licences.items():
        assert f"| {text(name)} | {count} |" in data
    scores = rows_of(section(card, "Evaluation"))[2:]
    assert "ConSE alignment" in {r[0] for r in scores}
    assert any(r[1] == "passed" for r in rows_of(section(card, "Status")))
    assert micro.producers(row.artifact_id)[0].stage_key in section(card, "Provenance")
    assert "–" not in rows_of(section(card, "What it is"))[5][1]


def test_model_card_tells_channel_and_takedown(micro: Ledger) -> None:
    row = final_checkpoint(micro)
    before = section(export(micro, row.artifact_id, Format.MODELCARD), "Status")
    assert "Channels that name it now: none." in before
    assert "neither it, nor what it started from" in before
    micro.move_channel("prod", row.artifact_id, expected=None, moved_by="ana", reason="first")
    dataset = only(micro, ArtifactKind.DATASET)
    case = micro.open_takedown(
        {"clips": ["x"]}, reason="asked", requested_by="ana", policy={}, blocks={}, clips=[],
        artifacts=[(dataset.artifact_id, "dataset", "contains")],
    )  # fmt: skip
    after = section(export(micro, row.artifact_id, Format.MODELCARD), "Status")
    assert "Channels that name it now: `prod`." in after
    assert f"| dataset | `{dataset.artifact_id[:12]}` | `{case.takedown_id}` |" in after


def test_model_card_says_what_is_gone(ledger: Ledger) -> None:
    small_history(ledger)
    card = export(ledger, CHECKPOINT.artifact_id, Format.MODELCARD)
    assert "files are no longer in the store" in section(card, "What it is")
    assert "its bytes are no longer in the store" in section(card, "Data")
    assert "No evaluation of it is recorded." in section(card, "Evaluation")
    assert "at least 0 samples drawn" in section(card, "Training")


def test_markdown_cells_cannot_break_their_table() -> None:
    rows = table(("a", "b"), [(text("x | y\n# z <b>"), code("q`|`"))])
    assert rows.splitlines()[2] == r"| x \| y \# z \<b\> | `q'/'` |"
