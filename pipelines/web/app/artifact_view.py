"""What the page of an artifact shows besides its lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from m4v.core.artifacts import ManifestFile
from m4v.core.errors import M4VError
from pipelines.ledger import ArtifactRow, Ledger, WithdrawalRow
from pipelines.ledger.channel_records import PinRow
from pipelines.web.app.stage_view import PortLine, Shown, flat, shown_of
from pipelines.web.app.streams import manifest_of

FILES_SHOWN = 100


@dataclass(frozen=True)
class ArtifactView:
    """`problem` says why the files cannot be shown. `deletion`: what became of the bytes, as the ledger knows it."""

    row: ArtifactRow
    files: tuple[ManifestFile, ...]
    total: int
    first: int
    shown: Shown | None
    problem: str
    channels: tuple[str, ...]
    withdrawal: WithdrawalRow | None
    pins: tuple[PinRow, ...]

    @property
    def summary(self) -> list[tuple[str, str]]:
        return flat({k: v for k, v in self.row.summary.items() if not _is_long(v)})

    @property
    def long_summary(self) -> str:
        """Parts of the summary that take more than a line."""
        rest = {k: v for k, v in self.row.summary.items() if _is_long(v)}
        return yaml.safe_dump(rest, sort_keys=False, allow_unicode=True) if rest else ""


def artifact_view(ledger: Ledger, row: ArtifactRow, cache: Path, first: int = 0) -> ArtifactView:
    """Raises nothing for an artifact whose bytes are gone: the page says so."""
    withdrawal = ledger.withdrawal(row.artifact_id, row.kind)
    files, shown, problem = _content(row, cache) if withdrawal is None and row.deletion is None else ((), None, "")
    channels = {c.name for c in ledger.channel_history() if c.artifact_id == row.artifact_id}
    return ArtifactView(
        row=row, files=files[first : first + FILES_SHOWN], total=len(files), first=first, shown=shown, problem=problem,
        channels=tuple(sorted(c for c in channels if _is_at(ledger, c, row))), withdrawal=withdrawal,
        pins=tuple(ledger.pins(row.artifact_id)),
    )  # fmt: skip


def _content(row: ArtifactRow, cache: Path) -> tuple[tuple[ManifestFile, ...], Shown | None, str]:
    try:
        files = manifest_of(row).files
    except M4VError as error:
        return (), None, error.message
    return files, shown_of(PortLine("", row), cache), ""


def _is_at(ledger: Ledger, channel: str, row: ArtifactRow) -> bool:
    now = ledger.channel(channel)
    return now is not None and now.artifact_id == row.artifact_id


def _is_long(value: object) -> bool:
    return isinstance(value, dict | list) and len(str(value)) > 120
