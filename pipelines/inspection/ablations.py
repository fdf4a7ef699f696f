"""Ablation tables of the ledger, newest first. No HTML here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eval.ablation.records import ABLATION, AblationTable
from eval.records import read_record
from m4v.core.artifacts import MANIFEST, Artifact, ArtifactKind
from m4v.core.errors import DataIntegrityError, InputError
from pipelines.ledger import ArtifactRow, Ledger

STAGE = "ablation"
NEWEST = 50  # tables listed unless asked for more


@dataclass(frozen=True)
class Listed:
    """A table as its artifact's summary tells it."""

    artifact_id: str
    run_id: str
    made_at: datetime
    name: str
    paper: str | None
    variants: int
    rows: int
    left_out: int


def listed(ledger: Ledger, newest: int = NEWEST) -> list[Listed]:
    """Every table once, by its newest run."""
    found: dict[str, Listed] = {}
    for run in ledger.runs(stage=STAGE, limit=newest):
        artifact_id = run.output("scores").artifact_id
        facts = ledger.artifact(artifact_id, ArtifactKind.SCORES).summary
        found.setdefault(artifact_id, Listed(
            artifact_id=artifact_id, run_id=run.run_id, made_at=run.committed_at, name=str(facts.get("table", "")),
            paper=facts.get("paper"), variants=int(facts.get("variants", 0)), rows=int(facts.get("rows", 0)),
            left_out=int(facts.get("left_out", 0)),
        ))  # fmt: skip
    return list(found.values())


def has_more(ledger: Ledger, newest: int) -> bool:
    """Whether there are older runs than `listed` looks at; one made again is listed once, so its length cannot tell."""
    return len(ledger.runs(stage=STAGE, limit=newest + 1)) > newest


def table_of(ledger: Ledger, cache: Path, given: str) -> tuple[ArtifactRow, AblationTable]:
    """The table with this id or beginning. Raises InputError for another artifact, DataIntegrityError when its bytes
    are gone or damaged."""
    row = ledger.artifact(given)
    if not any(run.stage == STAGE for run in ledger.producers(row.artifact_id)):
        raise InputError(
            f"this is no table of an ablation but of kind {row.kind}", value=given, next_step="m4v evaluate ablation"
        )
    artifact = Artifact(row.uri, row.artifact_id, row.kind, cache)
    if not artifact.storage.exists(MANIFEST):
        raise DataIntegrityError("its bytes are no longer in the store", value=artifact.id[:12])
    return row, read_record(AblationTable, artifact, ABLATION)
