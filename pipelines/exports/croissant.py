"""Croissant 1.1 card (JSON-LD) of a dataset version: its files, its index as records, its licences by count."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from m4v.core.artifacts import ArtifactKind, Manifest, ManifestFile
from m4v.core.errors import DataIntegrityError
from m4v.core.shard_index import INDEX, SCHEMA
from pipelines.exports.dataset_facts import DatasetFacts, dataset_facts
from pipelines.exports.ids import producer
from pipelines.exports.reading import artifact_of, manifest_of
from pipelines.exports.slsa import artifact_uri
from pipelines.ledger import ArtifactRow, Ledger
from pipelines.ledger.types import iso

CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
SHARDS = "shards/*.tar"
PARQUET = "application/x-parquet"  # as Croissant calls it; its readers do not know the registered name
SPDX = "https://spdx.org/licenses"
_TYPES = {pa.string(): "sc:Text", pa.int32(): "cr:Int32", pa.int64(): "cr:Int64"}
# How a field is called in the index, and what it says; the rest speaks for itself in the index's own schema.
_MEANINGS = {
    "sample_id": "identity of the sample: hash of clip, encoder and bucket; name of its members in the shard",
    "clip_id": "identity of the clip: hash of source, source id, start and end",
    "source": "name of the collection the clip came from",
    "source_id": "the clip's file in its collection",
    "source_digest": "sha256 of the file the clip was cut from",
    "start_us": "start in the file, microseconds",
    "end_us": "end in the file, microseconds, exclusive; 0 for an image",
    "phash": "perceptual hash of the clip, hexadecimal",
    "media": "video or image",
    "shard": "tar below shards/ that holds the sample",
    "bucket_t": "latent frames",
    "bucket_h": "latent height",
    "bucket_w": "latent width",
    "tokens": "2x2 latent patches",
    "captions": "captions of the clip",
    "caption_digest": "sha256 of the captions",
    "licence": "licence of the clip, an SPDX identifier where it has one",
}
_MEMBERS = {
    "latent": "video latents (safetensors)",
    "text": "text features of the captions (safetensors)",
    "meta": "caption, provenance and scores (JSON)",
}
_MEMBER_FIELDS = {"offset": "first byte in the tar", "size": "bytes", "sha256": "sha256"}


def card(ledger: Ledger, identity: str) -> dict[str, Any]:
    """The card of a dataset version; raises InputError for another kind of artifact, DataIntegrityError when the
    version's bytes are gone."""
    dataset = artifact_of(ledger, identity, ArtifactKind.DATASET)
    manifest = manifest_of(dataset)
    if manifest is None:
        raise DataIntegrityError(
            "the dataset version's bytes are gone, and its card describes them",
            value=dataset.artifact_id[:12],
            next_step="run its recipe again, or export --format slsa, which needs the ledger only",
        )
    facts = dataset_facts(ledger, dataset)
    return {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "@id": artifact_uri(dataset.kind, dataset.artifact_id),
        "name": facts.name,
        "description": _description(facts),
        "version": f"1.0.0+{dataset.artifact_id}",
        "identifier": artifact_uri(dataset.kind, dataset.artifact_id),
        "url": artifact_uri(dataset.kind, dataset.artifact_id),
        "citeAs": f"{facts.name}, dataset version {dataset.artifact_id}",
        "datePublished": iso(dataset.recorded_at),
        "creator": {"@type": "sc:Organization", "name": f"made by {producer()}"},
        "keywords": ["text-to-video", "video", "latents", "WebDataset"],
        "license": [_licence(name, count, facts.samples) for name, count in facts.licences.items()],
        "isLiveDataset": False,
        "distribution": _distribution(manifest),
        "recordSet": [_samples()],
        **_responsible(facts, dataset),
    }


def _context() -> dict[str, Any]:
    """Croissant's own context, and the vocabulary of responsible AI."""
    terms = (
        "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject",
        "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5",
        "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator",
        "source", "subField", "transform",
    )  # fmt: skip
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "description": {"@container": "@language"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "name": {"@container": "@language"},
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        **{term: f"cr:{term}" for term in terms},
    }


def _description(facts: DatasetFacts) -> str:
    sources = ", ".join(f"{s.name} ({s.samples})" for s in facts.sources) or "unknown sources"
    return (
        f"Encoded clips for training text-to-video models: {facts.samples} samples ({facts.videos} videos, "
        f"{facts.images} images) from {sources}, as WebDataset shards with an index. "
        "A version never changes; its identity is the Merkle root of its files."
    )


def _licence(name: str, count: int, total: int) -> dict[str, Any]:
    known = all(c.isalnum() or c in "-.+" for c in name) and any(c.isdigit() for c in name)
    link = {"url": f"{SPDX}/{name}.html"} if known else {}
    return {"@type": "sc:CreativeWork", "name": name, "description": f"{count} of {total} samples", **link}


def _distribution(manifest: Manifest) -> list[dict[str, Any]]:
    files = [_file(f) for f in manifest.files if f.path == INDEX]
    shards = [f for f in manifest.files if f.path.startswith("shards/")]
    size = sum(f.size_bytes for f in shards)
    shard_set = {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": f"{len(shards)} WebDataset shards, {size} bytes in all; the digest of each stands in the "
        "version's manifest",
        "encodingFormat": "application/x-tar",
        "includes": SHARDS,
    }
    return [*files, shard_set]


def _file(file: ManifestFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "description": "one row a sample: provenance, licence, and the place of its members in the shards",
        "contentUrl": file.path,
        "contentSize": f"{file.size_bytes} B",
        "encodingFormat": PARQUET,
        "sha256": file.sha256,
    }


def _samples() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "The samples of this version, sorted by clip.",
        "key": {"@id": "samples/sample_id"},
        "field": [_field(column.name, column.type) for column in SCHEMA],
    }


def _field(name: str, kind: pa.DataType) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": _meaning(name),
        "dataType": _TYPES[kind],
        "source": {"fileObject": {"@id": INDEX}, "extract": {"column": name}},
    }


def _meaning(name: str) -> str:
    if name in _MEANINGS:
        return _MEANINGS[name]
    member, _, field = name.partition("_")
    return f"{_MEMBERS[member]}: {_MEMBER_FIELDS[field]}"


def _responsible(facts: DatasetFacts, dataset: ArtifactRow) -> dict[str, Any]:
    """Croissant's RAI fields, from what the ledger and the version's files say and nothing else."""
    return {
        "rai:dataCollection": facts.collection,
        "rai:dataCollectionType": facts.collection_types,
        "rai:dataCollectionMissingData": facts.missing,
        "rai:dataPreprocessingProtocol": facts.preprocessing,
        "rai:machineAnnotationTools": facts.tools,
        "rai:dataLimitations": facts.limitations,
        "rai:dataBiases": ["Not measured. The shares of sources, media and sizes are those in the description."],
        "rai:dataUseCases": ["Training and evaluation of text-to-video models."],
        "rai:personalSensitiveInformation": [facts.personal],
        "rai:dataReleaseMaintenancePlan": facts.maintenance,
    }
