"""Quarantine tables of artifacts, and what to do about each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow.parquet as pq

from dataprep.quarantine import QUARANTINE
from dataprep.sources.listing import REJECTED, SourceReader
from m4v.core.artifacts import Artifact, ArtifactKind

HOLDERS = (ArtifactKind.CLIPS, ArtifactKind.DATASET, ArtifactKind.SOURCE)

_REPAIR = {
    "empty": "copy or download the file again",
    "not_media": "replace the file, or leave it out with the source's `exclude`",
    "no_index": "copy or download the file again: its end is missing",
    "truncated": "copy or download the file again: its end is missing",
    "no_video": "leave it out with the source's `exclude`",
    "decode_error": "copy or download the file again, or re-encode it",
    "size_change": "re-encode it at one size, or split it where the size changes",
    "unsupported": "re-encode it as 8-bit BT.709 video",
    "too_short": "lower curate.filters.min_frames or the smallest of encode.buckets.frames, or leave it out",
    "too_large": "raise curate.limits, or scale the file down",
    "timeout": "run again: it is tried anew; raise curate.limits.item_timeout_s if it comes back",
    "worker_died": "run again with fewer workers or more memory: it is tried anew",
    "missing_file": "put the file there, or correct the source's location",
    "source_changed": "run again: the source is listed anew",
    "missing_caption": "add a caption, or set curate.missing_caption=drop to keep its scores",
    "duplicate_id": "give the rows ids of their own",
    "bad_row": "correct the row",
}
_OTHER = "look at the item: the detail says what is wrong with it"


@dataclass(frozen=True, order=True)
class Held:
    """A quarantined item of an artifact, `next` what helps."""

    artifact_id: str
    kind: str
    source: str
    source_id: str
    path: str
    reason: str
    detail: str
    step: str
    next: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def held_items(artifacts: Sequence[Artifact]) -> list[Held]:
    """Rows of all tables. A clip table repeats what its sources rejected: with one given, sources add nothing."""
    if any(artifact.kind == ArtifactKind.CLIPS for artifact in artifacts):
        artifacts = [artifact for artifact in artifacts if artifact.kind != ArtifactKind.SOURCE]
    return [row for artifact in artifacts for row in _rows(artifact)]


def _rows(artifact: Artifact) -> Iterator[Held]:
    if artifact.kind == ArtifactKind.SOURCE:
        reader = SourceReader(artifact)
        for rejected in reader.rejected() if REJECTED in artifact.names(REJECTED) else ():
            detail = f"row {rejected.row}: {rejected.detail}" if rejected.row is not None else rejected.detail
            yield _held(artifact, reader.name, "", rejected.path, rejected.reason, detail, "source")
    elif QUARANTINE in artifact.names(QUARANTINE):
        for batch in pq.ParquetFile(artifact.path(QUARANTINE)).iter_batches():
            for row in batch.to_pylist():
                columns = (row["source"], row["source_id"], row["path"], row["reason"], row["detail"], row["step"])
                yield _held(artifact, *columns)


def _held(artifact: Artifact, source: str, source_id: str, path: str, reason: str, detail: str, step: str) -> Held:
    following = repair(reason)
    return Held(artifact.id, str(artifact.kind), source, source_id, path, reason, detail, step, following)


def repair(reason: str) -> str:
    """What a person can do about items with this reason."""
    return _REPAIR.get(reason, _OTHER)


def counted(rows: Iterable[Held]) -> dict[str, int]:
    """Rows by reason, most first."""
    counts = Counter(row.reason for row in rows)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
