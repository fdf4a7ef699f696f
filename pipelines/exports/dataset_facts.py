"""What there is to say of a dataset version: counts, licences, where it came from and what was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from m4v.core.artifacts import ArtifactKind
from m4v.core.shard_index import INDEX
from m4v.core.storage import Storage
from pipelines.exports.reading import document
from pipelines.ledger import ArtifactRow, Ledger, RunRow

SOURCE_RECORD = "source.json"
DATASET_RECORD = "dataset.json"
UNKNOWN = "unknown"
_BATCH = 65_536
_COLUMNS = ["licence", "media", "source"]
# Terms of Croissant's RAI vocabulary.
_COLLECTION_TYPES = {"synthetic": "Software Collection", "folder": "Others"}
_SECONDARY = "Secondary Data Analysis"


@dataclass(frozen=True)
class SourceShare:
    """A collection's part in a dataset version."""

    name: str
    kind: str
    licence: str
    terms: str
    samples: int


@dataclass(frozen=True)
class DatasetFacts:
    """Counts are of samples. Sentences say only what the ledger and the artifacts' own records hold."""

    name: str
    samples: int
    videos: int
    images: int
    captions: int
    tokens: int
    shards: int
    licences: Mapping[str, int]
    sources: tuple[SourceShare, ...]
    buckets: tuple[str, ...]
    preprocessing: list[str]
    tools: list[str]
    missing: str
    withdrawn_by: str | None

    @property
    def collection(self) -> str:
        parts = [f"{s.name}: {s.kind}, licence {s.licence}, {s.samples} samples" for s in self.sources]
        return f"Clips of {len(parts)} collections. " + "; ".join(parts) + "."

    @property
    def collection_types(self) -> list[str]:
        return sorted({_COLLECTION_TYPES.get(s.kind, _SECONDARY) for s in self.sources})

    @property
    def limitations(self) -> list[str]:
        return [f"Clips are scaled and cut to {'; '.join(self.buckets)}. Pixels are not part of the dataset."]

    @property
    def personal(self) -> str:
        return "Not assessed: no step of this version looks for personal data, and clips may show people."

    @property
    def maintenance(self) -> str:
        state = f"This version was taken out of use by case {self.withdrawn_by}." if self.withdrawn_by else ""
        plan = (
            "Versions do not change. A clip that has to go is withdrawn by a takedown case, which makes a new version."
        )
        return f"{plan} {state}".strip()


def dataset_facts(ledger: Ledger, dataset: ArtifactRow) -> DatasetFacts:
    """Raises InputError or DataIntegrityError when the version's index cannot be read."""
    licences, media, by_source = _counts(dataset)
    record = document(dataset, DATASET_RECORD) or {}
    encoded, curated, sources = _upstream(ledger, dataset)
    withdrawal = ledger.withdrawal(dataset.artifact_id, ArtifactKind.DATASET)
    return DatasetFacts(
        name=_name(ledger, encoded, dataset),
        samples=sum(media.values()),
        videos=media["video"],
        images=media["image"],
        captions=int(record.get("captions", 0)),
        tokens=int(record.get("tokens", 0)),
        shards=int(record.get("shards", 0)),
        licences=dict(sorted(licences.items(), key=lambda item: (-item[1], item[0]))),
        sources=tuple(_share(sources.get(name), name, count) for name, count in sorted(by_source.items())),
        buckets=tuple(_bucket(b) for b in record.get("buckets", ())),
        preprocessing=_preprocessing(curated, encoded, record),
        tools=_tools(curated, record),
        missing=_missing(ledger, encoded),
        withdrawn_by=withdrawal.takedown_id if withdrawal else None,
    )


def _counts(dataset: ArtifactRow) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Samples by licence, medium and source, from three columns of the index."""
    counts: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    with Storage(dataset.uri).open(INDEX) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(_BATCH, columns=_COLUMNS):
            for counter, name in zip(counts, _COLUMNS, strict=True):
                for pair in batch.column(name).value_counts().to_pylist():
                    counter[pair["values"] or UNKNOWN] += pair["counts"]
    return counts[0], counts[1], counts[2]


def _upstream(
    ledger: Ledger, dataset: ArtifactRow
) -> tuple[RunRow | None, RunRow | None, dict[str, Mapping[str, Any]]]:
    """The run that made the version, the run that curated its clips, and the sources' records by name."""
    made = ledger.producers(dataset.artifact_id)
    graph = ledger.lineage_up(dataset.artifact_id)
    runs = [ledger.run(run_id) for run_id in sorted(graph.runs)]
    curated = [r for r in runs if any(p.kind is ArtifactKind.CLIPS for p in r.outputs)]
    sources: dict[str, Mapping[str, Any]] = {}
    for artifact in sorted(graph.artifacts.values()):
        if artifact.kind == ArtifactKind.SOURCE:
            record = document(ledger.artifact(artifact.artifact_id, artifact.kind), SOURCE_RECORD)
            if isinstance(record, dict):
                sources[str(record.get("name"))] = record
    return (made[0] if made else None), (curated[0] if curated else None), sources


def _name(ledger: Ledger, run: RunRow | None, dataset: ArtifactRow) -> str:
    """The recipe and node it was first made by, else its kind."""
    if run is not None:
        attempt = ledger.attempt(run.attempt_id)
        if attempt.pipeline_run_id is not None:
            return f"{ledger.pipeline_run(attempt.pipeline_run_id).recipe}-{attempt.node_id}".replace(".", "-")
    return f"dataset-{dataset.artifact_id[:12]}"


def _share(record: Mapping[str, Any] | None, name: str, samples: int) -> SourceShare:
    found = record or {}
    return SourceShare(
        name=name,
        kind=str(found.get("kind", UNKNOWN)),
        licence=str(found.get("licence") or UNKNOWN),
        terms=str(found.get("terms", "")),
        samples=samples,
    )


def _bucket(bucket: Mapping[str, Any]) -> str:
    frames = "" if bucket["media"] == "image" else f", {bucket['frames']} frames"
    return f"{bucket['width']}x{bucket['height']}{frames}: {bucket['samples']} samples"


def _preprocessing(curated: RunRow | None, encoded: RunRow | None, record: Mapping[str, Any]) -> list[str]:
    """Steps in words, with the settings that were on."""
    steps = []
    if curated is not None:
        config = curated.config
        shots = config.get("shots") or {}
        steps.append(f"Shots found by {shots.get('detector', UNKNOWN)}, {shots.get('trim_frames', 0)} frames trimmed.")
        limits = {k: v for k, v in sorted((config.get("filters") or {}).items()) if v is not None}
        steps.append("Filters: " + (", ".join(f"{k} {v:g}" for k, v in limits.items()) or "none") + ".")
        dedup = [k for k in ("exact", "perceptual", "semantic") if (config.get("dedup") or {}).get(k)]
        steps.append(f"Duplicates removed: {', '.join(dedup) or 'none'}.")
    if encoded is not None:
        kinds = {
            part: (record.get(part) or {}).get("config", {}).get("kind", UNKNOWN) for part in ("codec", "text_encoder")
        }
        steps.append(f"Encoded with codec {kinds['codec']} and text encoder {kinds['text_encoder']}.")
    return steps


def _tools(curated: RunRow | None, record: Mapping[str, Any]) -> list[str]:
    tools = [f"text encoder {(record.get('text_encoder') or {}).get('config', {}).get('kind', UNKNOWN)}"]
    if curated is not None:
        signals = [k for k, v in sorted((curated.config.get("signals") or {}).items()) if v is True]
        tools += [f"shot detector {(curated.config.get('shots') or {}).get('detector', UNKNOWN)}"]
        tools += [f"curation signal {name}" for name in signals]
    return tools


def _missing(ledger: Ledger, encoded: RunRow | None) -> str:
    """How many clips curation dropped, and why."""
    port = next((p for p in encoded.inputs if p.kind is ArtifactKind.CLIPS), None) if encoded else None
    if port is None:
        return "Not recorded."
    summary = ledger.artifact(port.artifact_id, port.kind).summary
    dropped = summary.get("dropped_by_reason") or {}
    reasons = ", ".join(f"{k} {v}" for k, v in sorted(dropped.items())) or "none"
    return f"Of the clips found, {summary.get('kept', UNKNOWN)} were kept. Dropped or set aside, by reason: {reasons}."
