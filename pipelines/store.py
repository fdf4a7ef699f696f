"""The artifact store: publishes staged outputs as immutable artifacts, locally or on `s3://`.

`artifacts/<kind>/<id[:2]>/<id>/`, the manifest last: a directory without one is a leftover, not an
artifact. Publishing the same bytes twice, or again after a crash at any point, ends in the same place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m4v.core.artifacts import ArtifactKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    """A published artifact, as the ledger records it."""

    artifact_id: str
    kind: ArtifactKind
    uri: str
    size_bytes: int
    files: int
    summary: Mapping[str, Any] = field(default_factory=dict)
