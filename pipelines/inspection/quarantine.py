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

_FETCH = "run again: the download is tried anew; check the URL if it comes back"
_REPAIR = {
    "empty": "copy or download the file again",
    "not_media": "replace the file, or leave it out with the source's `exclude`",
    "no_index": "copy or download the file again: its end is missing",
    "truncated": "copy or download the file again: its end is missing",
    "no_video": "leave it out with the source's `exclude`",
    "decode_error": "copy or download the file again, or re-encode it",
    "size_change": "re-encode it at one size, or split it where the size changes",
    "unsupported": "choose the other curate.decoder, or re-encode the file",
    "animation": "convert it to a video, or leave it out with the source's `exclude`",
    "too_short": "lower curate.filters.min_frames or the smallest of encode.buckets.frames, or leave it out",
    "too_large": "raise curate.limits, or scale the file down",
    "timeout": "run again: it is tried anew; raise curate.limits.item_timeout_s if it comes back",
    "out_of_memory": "raise curate.limits, run fewer workers, or scale the file down",
    "worker_died": "run again with fewer workers or more memory: it is tried anew",
    "missing_file": "put the file there, or correct the source's location",
    "source_changed": "run again: the source is listed anew",
    "missing_caption": "add a caption, or set curate.missing_caption=drop to keep its scores",
    "duplicate_id": "give the rows ids of their own",
    "bad_row": "correct the row",
    "bad_crop": "correct the row's crop: [x0, x1, y0, y1] in pixels of its resolution",
    "conflicting_crop": "keep one crop of the row's frames, or give each frames of its own",
    "crop_mismatch": "correct the row's crop or resolution: they are of another picture than the file's",
    "bad_table": "correct the table: the detail says where it stops making sense",
    "bad_range": "correct the frame range",
    "duplicate_caption": "keep one caption of the file and remove the others",
    "duplicate_member": "give the archive's members names of their own",
    "bad_archive": "copy or download the archive again",
    "damaged_member": "copy or download the archive again",
    "unsafe_member": "pack the archive with plain relative names",
    "unsafe_name": "rename the file: its name cannot be used safely",
    "unsafe_url": "correct the URL: only http(s) to public addresses is fetched",
    "private_address": "correct the URL: private addresses are not fetched",
    "not_downloaded": "download the collection's missing files",
    "unreadable": "make the file readable",
    "unsafe_redirect": "correct the URL: it leads to an address that is not fetched",
    "too_many_redirects": "correct the URL: it leads in a circle",
    "opted_out": "leave it out: its owner does not want it used",
    "takedown": "leave it out: a takedown case names it (m4v takedown list)",
    **dict.fromkeys(("connection_lost", "host_unknown", "no_ranges", "range_refused", "tls", "unreachable"), _FETCH),
    **dict.fromkeys(("wrong_digest", "wrong_size"), "check the table's claim, or download again"),
    "recaption_failed": "run again: the caption model is asked anew; or add a caption by hand",
}
_HTTP = "http_"  # and a status
_REFUSED = "the server refuses it: check the URL, or leave the row out"
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
        for batch in pq.ParquetFile(artifact.path(QUARANTINE), pre_buffer=False).iter_batches():
            for row in batch.to_pylist():
                columns = (row["source"], row["source_id"], row["path"], row["reason"], row["detail"], row["step"])
                yield _held(artifact, *columns)


def _held(artifact: Artifact, source: str, source_id: str, path: str, reason: str, detail: str, step: str) -> Held:
    following = repair(reason)
    return Held(artifact.id, str(artifact.kind), source, source_id, path, reason, detail, step, following)


def repair(reason: str) -> str:
    """What a person can do about items with this reason."""
    return _REPAIR.get(reason, _REFUSED if reason.startswith(_HTTP) else _OTHER)


def counted(rows: Iterable[Held]) -> dict[str, int]:
    """Rows by reason, most first."""
    counts = Counter(row.reason for row in rows)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
