"""OpenLineage vocabulary: facets with their producer and schema, ours among them (`facet_schemas.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.exports.ids import producer

SPEC = "https://openlineage.io/spec"
CORE = f"{SPEC}/2-0-2/OpenLineage.json"
RUN_EVENT = f"{CORE}#/$defs/RunEvent"
DATASET_EVENT = f"{CORE}#/$defs/DatasetEvent"
OURS = "urn:m4v-pipeline:openlineage:1-0-0"

_VERSIONS = {
    "ParentRunFacet": "1-2-0", "ErrorMessageRunFacet": "1-0-1", "ProcessingEngineRunFacet": "1-1-1",
    "JobTypeJobFacet": "2-0-4", "SourceCodeLocationJobFacet": "1-1-0", "DatasetVersionDatasetFacet": "1-0-1",
    "DatasourceDatasetFacet": "1-0-1", "DatasetTypeDatasetFacet": "1-0-1", "TagsDatasetFacet": "1-0-0",
    "OutputStatisticsOutputDatasetFacet": "1-0-2", "LifecycleStateChangeDatasetFacet": "1-0-1",
}  # fmt: skip

Facet = dict[str, Any]


def facet(name: str, values: Mapping[str, Any]) -> Facet:
    """A facet of the specification, by its type's name; None values are left out."""
    return _facet(f"{SPEC}/facets/{_VERSIONS[name]}/{name}.json#/$defs/{name}", values)


def our_facet(name: str, values: Mapping[str, Any]) -> Facet:
    """A custom facet, by its type's name in `facet_schemas.json`; None values are left out."""
    return _facet(f"{OURS}#/$defs/{name}", values)


def _facet(schema: str, values: Mapping[str, Any]) -> Facet:
    return {"_producer": producer(), "_schemaURL": schema, **{k: v for k, v in values.items() if v is not None}}
