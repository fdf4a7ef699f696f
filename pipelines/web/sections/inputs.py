"""The report's inputs by what they are; a run may have only some of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from m4v.core.artifacts import Artifact
from m4v.core.errors import DataIntegrityError
from m4v.core.stage import StageContext

Row = dict[str, Any]
_CHECKPOINT = "checkpoint."


@dataclass(frozen=True)
class ReportInputs:
    """Artifacts by input name. Readers return None, or nothing, for what the run does not have."""

    artifacts: dict[str, Artifact]

    @classmethod
    def of(cls, context: StageContext) -> ReportInputs:
        return cls(dict(context.inputs))

    def get(self, name: str) -> Artifact | None:
        return self.artifacts.get(name)

    @property
    def sources(self) -> list[Artifact]:
        numbered = [(int(n.split(".", 1)[1]), a) for n, a in self.artifacts.items() if n.startswith("source.")]
        return [artifact for _, artifact in sorted(numbered, key=lambda pair: pair[0])]

    @property
    def checkpoints(self) -> list[tuple[str, Artifact]]:
        """(stage name, artifact) in the order in which the pipeline names them: that of the ladder."""
        return [(n.removeprefix(_CHECKPOINT), a) for n, a in self.artifacts.items() if n.startswith(_CHECKPOINT)]


def read_json(artifact: Artifact, name: str) -> Any:
    """Raises DataIntegrityError when the file is missing or no JSON."""
    try:
        return json.loads(artifact.path(name).read_text())
    except ValueError as error:
        raise DataIntegrityError(
            f"{name} does not parse: {error}", where=f"{artifact.kind} {artifact.id[:12]}"
        ) from None


def read_rows(artifact: Artifact, name: str, columns: list[str] | None = None) -> list[Row]:
    """Rows of a Parquet table; [] when the artifact has no such file. Unknown columns are left out."""
    if name not in artifact.names():
        return []
    path = artifact.path(name)
    if columns is not None:
        known = set(pq.read_schema(path).names)
        columns = [c for c in columns if c in known]
    rows: list[Row] = pq.read_table(path, columns=columns).to_pylist()
    return rows
